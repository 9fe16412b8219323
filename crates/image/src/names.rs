//! Names: bytes that end with a zero, in the file itself or in a pool of their own.

use crate::bytes::until_zero;

/// Where a name is. Four bytes, so that a table of functions stays small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name(u32);

impl Name {
    pub(crate) const NONE: Self = Self(u32::MAX);

    /// The name at an offset in the file.
    pub(crate) fn in_file(offset: usize) -> Self {
        u32::try_from(offset).map_or(Self::NONE, Self)
    }
}

/// Where the names of an image are.
#[derive(Debug, Default)]
pub(crate) enum Names {
    /// In the file's own string tables.
    #[default]
    File,
    /// In a pool: the file has them compressed, or without the zero.
    Pool(Vec<u8>),
}

impl Names {
    /// Puts a name into the pool, unless the pool has become larger than `limit`.
    pub(crate) fn add(&mut self, name: &[u8], limit: usize) -> Name {
        let Self::Pool(pool) = self else { return Name::NONE };
        if name.is_empty() || pool.len().saturating_add(name.len()) >= limit {
            return Name::NONE;
        }
        let name_starts = Name::in_file(pool.len());
        pool.extend_from_slice(name);
        pool.push(0);
        name_starts
    }

    /// The bytes of a name; none if it has none.
    pub(crate) fn get<'n>(&'n self, file: &'n [u8], name: Name) -> &'n [u8] {
        if name == Name::NONE {
            return &[];
        }
        let bytes = match self {
            Self::File => file,
            Self::Pool(pool) => pool,
        };
        // Names of C++ and Rust are long, but not without end: a table without zeros must not be looked through again
        // and again.
        let from = usize::try_from(name.0).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        let name = until_zero(from.get(..MAX_NAME).unwrap_or(from));
        if name.len() == MAX_NAME { &[] } else { name }
    }
}

pub(crate) const MAX_NAME: usize = 1 << 13;

/// The name of the function that a `.cold` part belongs to: `foo` for `foo.cold` and `foo.cold.3`.
pub(crate) fn owner_of_part(name: &[u8]) -> Option<&[u8]> {
    let digits = name.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let name = match digits {
        0 => name,
        digits => name.get(..name.len() - digits)?.strip_suffix(b".")?,
    };
    name.strip_suffix(b".cold").filter(|owner| !owner.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_parts_name_their_function() {
        assert_eq!(owner_of_part(b"foo.cold"), Some(&b"foo"[..]));
        assert_eq!(owner_of_part(b"foo.part.0.cold.12"), Some(&b"foo.part.0"[..]));
        assert_eq!(owner_of_part(b"foo.colder"), None);
        assert_eq!(owner_of_part(b"foo.cold."), None);
        assert_eq!(owner_of_part(b".cold"), None);
        assert_eq!(owner_of_part(b"foo"), None);
    }
}
