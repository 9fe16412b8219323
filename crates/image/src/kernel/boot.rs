//! A boot image (`vmlinuz`, `bzImage`): real-mode code in front of a compressed `vmlinux`. And compressed modules.
//!
//! Offsets are those of the kernel's Documentation/arch/x86/boot.rst.

use crate::bytes::{array, u16_at, u32_at};
use crate::error::Error;
use std::io::Read;

/// No kernel is larger.
const MAX_KERNEL: usize = 1 << 30;
/// No compressed module is taken to be larger.
const MAX_MODULE: usize = 256 << 20;
/// For what a decoder needs besides, in KiB: the largest window in use is 128 MiB.
const DECODER_MEMORY: u32 = 256 << 10;

/// Whether a file begins as a boot image does. It begins as a PE image too.
pub(crate) fn is_boot_image(file: &[u8]) -> bool {
    u16_at(file, 0x1fe) == Some(0xaa55) && array(file, 0x202) == Some(*b"HdrS")
}

/// The kernel in a boot image. The image itself is given back to the allocator.
pub(crate) fn unpack(file: Vec<u8>) -> Result<Vec<u8>, Error> {
    let header = Error::Header("the boot image's setup header is cut off");
    let (Some(version), Some(&sectors)) = (u16_at(&file, 0x206), file.get(0x1f1)) else { return Err(header) };
    if version < 0x208 {
        return Err(Error::Header(
            "the boot image is older than Linux 2.6.26 and does not say where its kernel is",
        ));
    }
    let (Some(offset), Some(length)) = (u32_at(&file, 0x248), u32_at(&file, 0x24c)) else {
        return Err(header);
    };
    let sectors = if sectors == 0 { 4 } else { usize::from(sectors) };
    let start = ((sectors + 1) * 512).saturating_add(offset as usize);
    let cut = Error::Header("the boot image's compressed kernel is cut off");
    let Some(payload) = file.get(start..start.saturating_add(length as usize)) else { return Err(cut) };
    if payload.starts_with(b"\x7fELF") {
        return Ok(payload.to_vec());
    }
    // Every compression is followed by the size of what it holds.
    let size = payload.len().checked_sub(4).and_then(|at| u32_at(payload, at)).ok_or(cut)?;
    let size = usize::try_from(size).unwrap_or(usize::MAX).min(MAX_KERNEL);
    let kernel = decode(payload, Size::Exactly(size))?;
    if kernel.starts_with(b"\x7fELF") {
        Ok(kernel)
    } else {
        Err(Error::Header("what the boot image holds is no vmlinux"))
    }
}

/// Whether a file begins as a compressed one, as modules are kept by many distributions.
pub(crate) fn is_compressed(file: &[u8]) -> bool {
    let magics: [&[u8]; 3] = [&[0x1f, 0x8b], &[0xfd, b'7', b'z', b'X', b'Z'], &[0x28, 0xb5, 0x2f, 0xfd]];
    magics.iter().any(|magic| file.starts_with(magic))
}

/// What a compressed file holds.
pub(crate) fn decompress(file: &[u8]) -> Result<Vec<u8>, Error> {
    decode(file, Size::AtMost(MAX_MODULE))
}

/// How much a payload holds.
#[derive(Clone, Copy)]
enum Size {
    Exactly(usize),
    AtMost(usize),
}

fn decode(payload: &[u8], size: Size) -> Result<Vec<u8>, Error> {
    let magic = array::<4>(payload, 0).ok_or(Error::Header("the compressed kernel is empty"))?;
    match magic {
        [0x1f, 0x8b, ..] => collect("gzip", flate2::read::GzDecoder::new(payload), size),
        [0xfd, b'7', b'z', b'X'] => {
            collect("xz", lzma_rust2::XzReader::new_mem_limit(payload, false, DECODER_MEMORY), size)
        }
        [0x28, 0xb5, 0x2f, 0xfd] => match ruzstd::decoding::StreamingDecoder::new(payload) {
            Ok(decoder) => collect("zstd", decoder, size),
            Err(error) => Err(Error::Unpack { format: "zstd", why: error.to_string() }),
        },
        [0x02, 0x21, 0x4c, 0x18] => collect("lz4", lz4_flex::frame::FrameDecoder::new(payload), size),
        [b'B', b'Z', b'h', _] => collect("bzip2", bzip2::read::BzDecoder::new(payload), size),
        [0x5d, 0, 0, _] => match lzma_rust2::LzmaReader::new_mem_limit(payload, DECODER_MEMORY, None) {
            Ok(decoder) => collect("lzma", decoder, size),
            Err(error) => Err(Error::Unpack { format: "lzma", why: error.to_string() }),
        },
        magic => Err(Error::Compression(magic)),
    }
}

/// Reads to the end, or to the size that was said: what is behind it is not the kernel's.
fn collect(format: &'static str, decoder: impl Read, size: Size) -> Result<Vec<u8>, Error> {
    let unpack = |why: String| Error::Unpack { format, why };
    let mut kernel = Vec::new();
    let (size, exact) = match size {
        Size::Exactly(size) => {
            kernel.try_reserve_exact(size).map_err(|error| unpack(error.to_string()))?;
            (size, true)
        }
        Size::AtMost(size) => (size, false),
    };
    let mut decoder = decoder.take(size as u64);
    // A chunk at a time: a size that is not true must not be paid for.
    let mut chunk = vec![0; 1 << 16];
    while kernel.len() < size {
        match decoder.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => kernel.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) => return Err(unpack(error.to_string())),
        }
    }
    match (exact, kernel.len() < size) {
        (true, true) => Err(unpack("it ends early".into())),
        (false, false) => Err(unpack(format!("it holds more than {} MiB", MAX_MODULE >> 20))),
        _ => Ok(kernel),
    }
}
