//! What a guest's screen showed: read, compared, saved.

use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Pixels of three bytes, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    /// From a binary PPM with 255 values, as QEMU writes it.
    pub(crate) fn from_ppm(bytes: &[u8]) -> Result<Self> {
        let mut rest = bytes;
        let mut word = || -> Result<&str> {
            let start = rest.iter().position(|b| !b.is_ascii_whitespace()).context("it is cut")?;
            let from = rest.get(start..).unwrap_or_default();
            let end = from.iter().position(u8::is_ascii_whitespace).context("it is cut")?;
            // The one blank behind a word belongs to it.
            rest = from.get(end + 1..).unwrap_or_default();
            std::str::from_utf8(from.get(..end).unwrap_or_default()).context("it has no text in front")
        };
        if word()? != "P6" {
            bail!("it is no binary PPM");
        }
        let width: usize = word()?.parse().context("its width")?;
        let height: usize = word()?.parse().context("its height")?;
        if word()? != "255" {
            bail!("its values are not bytes");
        }
        let pixels: Vec<[u8; 3]> = rest.as_chunks().0.to_vec();
        if width == 0 || pixels.len() != width * height {
            bail!("it has {} pixels, and not {width}x{height}", pixels.len());
        }
        Ok(Self { width, height, pixels })
    }

    /// Pixels in a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub(crate) fn height(&self) -> usize {
        self.height
    }

    /// Writes it as a PNG.
    pub(crate) fn save(&self, file: &Path) -> Result<()> {
        let side = |n: usize| u32::try_from(n).context("too large a picture");
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, side(self.width)?, side(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().context("no PNG")?;
        writer.write_image_data(self.pixels.as_flattened()).context("no PNG")?;
        writer.finish().context("no PNG")?;
        fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
    }

    /// What tells it from `other`.
    pub(crate) fn differs(&self, other: &Self) -> Option<String> {
        if (self.width, self.height) != (other.width, other.height) {
            return Some(format!(
                "{}x{} and {}x{} pixels",
                self.width, self.height, other.width, other.height
            ));
        }
        let mut count = 0;
        let mut first = None;
        for (at, (one, another)) in self.pixels.iter().zip(&other.pixels).enumerate() {
            if one != another {
                count += 1;
                first.get_or_insert(at);
            }
        }
        first.map(|at| format!("{count} pixels differ, the first at {},{}", at % self.width, at / self.width))
    }

    /// Whether cells of `size` from the pixel `at` on hold `lines`: a blank cell has one colour, each character always looks
    /// the same, and no two look alike. The number of characters.
    pub(crate) fn check_text(
        &self,
        lines: &[String],
        at: (usize, usize),
        size: (usize, usize),
    ) -> Result<usize> {
        let mut looks: BTreeMap<char, Vec<bool>> = BTreeMap::new();
        let mut inked = 0;
        for (row, line) in lines.iter().enumerate() {
            for (column, character) in line.chars().enumerate() {
                let (x, y) = (at.0 + column * size.0, at.1 + row * size.1);
                let cell = self.cell(x, y, size)?;
                let is_blank = cell.iter().all(|set| !set);
                if is_blank != (character == ' ') {
                    bail!("row {row}, column {column} at {x},{y}: `{character}` was to be there");
                }
                if is_blank {
                    continue;
                }
                inked += 1;
                if looks.entry(character).or_insert_with(|| cell.clone()) != &cell {
                    bail!("row {row}, column {column}: this `{character}` looks unlike the first");
                }
            }
        }
        let mut seen: BTreeMap<&Vec<bool>, char> = BTreeMap::new();
        for (&character, look) in &looks {
            if let Some(other) = seen.insert(look, character) {
                bail!("`{other}` and `{character}` look alike");
            }
        }
        Ok(inked)
    }

    /// Which pixels of a cell are unlike its first one.
    fn cell(&self, x: usize, y: usize, (width, height): (usize, usize)) -> Result<Vec<bool>> {
        let mut cell = Vec::with_capacity(width * height);
        if x + width > self.width {
            bail!("the cell at {x},{y} is outside of {}x{}", self.width, self.height);
        }
        for row in y..y + height {
            let start = row * self.width + x;
            let Some(pixels) = self.pixels.get(start..start + width) else {
                bail!("the cell at {x},{y} is outside of {}x{}", self.width, self.height);
            };
            cell.extend_from_slice(pixels);
        }
        let first = cell.first().copied().unwrap_or_default();
        Ok(cell.iter().map(|pixel| *pixel != first).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three cells of 3x1: `a`, a blank, `b`.
    fn cells() -> Picture {
        let (off, on) = ([0, 0, 9], [9, 9, 9]);
        Picture { width: 9, height: 1, pixels: vec![off, on, off, off, off, off, off, off, on] }
    }

    #[test]
    fn ppm_is_read() {
        let picture = Picture::from_ppm(b"P6\n2 1\n255\n\x00\x01\x02\n\x20\x05").unwrap();
        assert_eq!((picture.width, picture.height), (2, 1));
        assert_eq!(picture.pixels, [[0, 1, 2], [b'\n', b' ', 5]]);
        assert!(Picture::from_ppm(b"P6\n2 1\n255\n\x00").is_err());
        assert!(Picture::from_ppm(b"P6 2").is_err());
    }

    #[test]
    fn differences_are_counted() {
        let mut other = cells();
        assert_eq!(cells().differs(&other), None);
        other.pixels[4] = [1, 1, 1];
        other.pixels[7] = [1, 1, 1];
        assert_eq!(cells().differs(&other).unwrap(), "2 pixels differ, the first at 4,0");
    }

    #[test]
    fn text_is_told_by_its_looks() {
        let check = |text: &str| cells().check_text(&[text.to_owned()], (0, 0), (3, 1));
        assert_eq!(check("a b").unwrap(), 2);
        assert!(check("a a").is_err());
        assert!(check("abb").is_err());
        assert!(check("a  ").is_err());
        assert!(check("a bc").is_err());
        // Two characters that look alike are no text.
        let twice = Picture { width: 6, height: 1, pixels: cells().pixels.repeat(2)[0..3].repeat(2) };
        assert!(twice.check_text(&["ab".to_owned()], (0, 0), (3, 1)).is_err());
        assert_eq!(twice.check_text(&["aa".to_owned()], (0, 0), (3, 1)).unwrap(), 2);
    }
}
