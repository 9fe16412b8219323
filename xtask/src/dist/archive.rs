//! Files as a `.tar.gz` whose bytes depend on nothing but the files.

use anyhow::{Context as _, Result};
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use std::collections::BTreeMap;
use tar::{Builder, Header};

/// When everything in an archive was changed last: a date that `tar` does not find odd.
const CHANGED: u64 = 1_767_225_600; // 2026-01-01

/// Packs `files`, named by their paths, as the folder `top`.
pub(super) fn pack(top: &str, files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
    // Neither a time nor a name of the system goes into the header of the compressed stream.
    let compressed: GzEncoder<Vec<u8>> = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    let mut archive = Builder::new(compressed);
    for (name, bytes) in files {
        let mut header = Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(CHANGED);
        header.set_uid(0);
        header.set_gid(0);
        let path = format!("{top}/{name}");
        archive
            .append_data(&mut header, &path, bytes.as_slice())
            .with_context(|| format!("cannot add {path}"))?;
    }
    let compressed = archive.into_inner().context("cannot end the archive")?;
    compressed.finish().context("cannot end the compressed stream")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn only_the_files_decide() {
        let files = BTreeMap::from([("b/c".to_owned(), b"2".to_vec()), ("a".to_owned(), b"1".to_vec())]);
        let first = pack("top", &files).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert_eq!(pack("top", &files).unwrap(), first);

        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(first.as_slice()));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let header = entry.header();
            let (mode, owner) = (header.mode().unwrap(), (header.uid().unwrap(), header.gid().unwrap()));
            assert_eq!((mode, owner, header.mtime().unwrap()), (0o644, (0, 0), CHANGED));
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((path, text));
        }
        assert_eq!(found, [("top/a".to_owned(), "1".to_owned()), ("top/b/c".to_owned(), "2".to_owned())]);
    }
}
