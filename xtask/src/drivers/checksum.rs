//! The checksum of an image: NT loads no driver whose header has another one.

use anyhow::{Context as _, Result};

/// Where the header has it, from the optional header's start on (PE format, "Optional Header").
const IN_OPTIONAL: usize = 64;
/// The signature and the file header, which are in front of that.
const IN_FRONT: usize = 4 + 20;
/// Where an image says at which offset the signature is.
const OFFSET: usize = 0x3c;

/// Where in the file it is.
fn place(image: &[u8]) -> Result<usize> {
    let bytes: [u8; 4] = image.get(OFFSET..OFFSET + 4).context("the image is cut short")?.try_into()?;
    Ok(usize::try_from(u32::from_le_bytes(bytes))? + IN_FRONT + IN_OPTIONAL)
}

/// What it has to be: all 16-bit words but its own added up, carries too, and the file's length.
pub(super) fn of(image: &[u8]) -> Result<u32> {
    let place = place(image)?;
    let mut sum = 0_u32;
    for (index, word) in image.chunks(2).enumerate() {
        if (place..place + 4).contains(&(2 * index)) {
            continue;
        }
        let word =
            u16::from_le_bytes([word.first().copied().unwrap_or(0), word.get(1).copied().unwrap_or(0)]);
        sum += u32::from(word);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    Ok(sum + u32::try_from(image.len())?)
}

/// What it is.
pub(super) fn written(image: &[u8]) -> Result<u32> {
    let place = place(image)?;
    let bytes: [u8; 4] = image.get(place..place + 4).context("the image is cut short")?.try_into()?;
    Ok(u32::from_le_bytes(bytes))
}

/// Writes it.
pub(crate) fn write(image: &mut [u8]) -> Result<()> {
    let (place, sum) = (place(image)?, of(image)?);
    image.get_mut(place..place + 4).context("the image is cut short")?.copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_bytes_do_not_count() {
        let mut image = vec![0xff_u8; 0x101];
        image[OFFSET..OFFSET + 4].copy_from_slice(&0x40_u32.to_le_bytes());
        let before = of(&image).unwrap();
        write(&mut image).unwrap();
        assert_eq!((written(&image).unwrap(), of(&image).unwrap()), (before, before));
        image[0] = 0xfe;
        assert_ne!(of(&image).unwrap(), before);
        of(&image[..0x3e]).unwrap_err();
    }
}
