//! Images whose tables were read already. Those of a large image are many thousand entries, and most sessions are about the same few.

use super::memory;
use super::nt::Nt;
use crate::Error;
use crate::host::image::{HEADERS, Image};
use alloc::sync::Arc;
use alloc::vec::Vec;
use std::sync::Mutex;

/// How many are remembered. Hardly any program has detours in more.
const IMAGES: usize = 16;

/// The last ones, the latest at the end.
#[derive(Debug, Default)]
pub(super) struct Tables(Mutex<Vec<Known>>);

#[derive(Debug)]
struct Known {
    base: u64,
    /// What an image begins with. The linker writes there what tells one file from another, its time and its sizes: as long as it is
    /// the same, so are the tables.
    headers: Vec<u8>,
    image: Arc<Image>,
}

impl Tables {
    /// Those of the image that begins at `base`; none if it has no headers that make sense.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn of(&self, nt: &'static Nt, base: u64) -> Result<Option<Arc<Image>>, Error> {
        let read = |address, bytes: &mut [u8]| memory::read(nt, address, bytes);
        let mut headers = Vec::new();
        headers.try_reserve_exact(HEADERS)?;
        headers.resize(HEADERS, 0);
        match read(base, &mut headers) {
            Ok(()) => {}
            Err(Error::OutOfMemory) => return Err(Error::OutOfMemory),
            Err(_) => return Ok(None),
        }
        let mut known = super::lock(&self.0);
        if let Some(same) = known.iter().find(|known| known.base == base && known.headers == headers) {
            return Ok(Some(Arc::clone(&same.image)));
        }
        let Some(image) = Image::read(&read, base)? else { return Ok(None) };
        let image = Arc::new(image);
        known.retain(|known| known.base != base);
        if known.len() >= IMAGES {
            known.remove(0);
        }
        // Without memory it is read again the next time.
        if known.try_reserve(1).is_ok() {
            known.push(Known { base, headers, image: Arc::clone(&image) });
        }
        Ok(Some(image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::ptr;
    use windows_sys::Win32::System::LibraryLoader::GetModuleHandleW;

    fn base_of_this() -> u64 {
        // SAFETY: no name means the program.
        unsafe { GetModuleHandleW(ptr::null()) }.addr() as u64
    }

    #[test]
    fn an_image_is_read_once() {
        let (tables, nt, base) = (Tables::default(), Nt::get().unwrap(), base_of_this());
        let first = tables.of(nt, base).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &tables.of(nt, base).unwrap().unwrap()));
        assert!(first.begins_at(base));
        assert!(tables.of(nt, 16).unwrap().is_none(), "nothing is mapped there");
    }

    /// Another one lies where it was.
    #[test]
    fn an_image_with_other_headers_is_read_anew() {
        let (tables, nt, base) = (Tables::default(), Nt::get().unwrap(), base_of_this());
        let first = tables.of(nt, base).unwrap().unwrap();
        // Its time.
        super::super::lock(&tables.0).first_mut().unwrap().headers[0x88] ^= 1;
        let second = tables.of(nt, base).unwrap().unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        assert_eq!(super::super::lock(&tables.0).len(), 1);
        assert!(Arc::ptr_eq(&second, &tables.of(nt, base).unwrap().unwrap()));
    }
}
