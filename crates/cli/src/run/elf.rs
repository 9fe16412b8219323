//! What an ELF file says of itself.

use anyhow::{Result, anyhow, bail};
use object::elf::{DF_1_PIE, DT_FLAGS_1, ET_DYN, ET_EXEC, FileHeader32, FileHeader64, PT_INTERP};
use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _};
use object::{Endianness, FileKind};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// For whom it is made, and how it is loaded.
pub(super) struct Elf {
    /// For which processors.
    pub(super) machine: Machine,
    /// A program or a shared object; nothing else can be loaded.
    pub(super) is_loadable: bool,
    /// It is linked as a program, though it can be loaded anywhere.
    pub(super) is_program: bool,
    /// The loader that it asks for.
    pub(super) loader: Option<PathBuf>,
}

/// The processors that it is for: `e_machine`, and how wide addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    number: object::elf::Machine,
    bits: u8,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.number, self.bits) {
            (object::elf::EM_X86_64, 64) => f.write_str("x86-64"),
            (object::elf::EM_X86_64, _) => f.write_str("x32"),
            (object::elf::EM_386, _) => f.write_str("i386"),
            (object::elf::EM_AARCH64, _) => f.write_str("AArch64"),
            (number, bits) => write!(f, "machine {} of {bits} bits", number.0),
        }
    }
}

impl Elf {
    /// Reads a file's headers.
    pub(super) fn read(data: &[u8]) -> Result<Self> {
        match FileKind::parse(data).map_err(|_| anyhow!("it is no ELF file"))? {
            FileKind::Elf64 => read::<FileHeader64<Endianness>>(data, 64),
            FileKind::Elf32 => read::<FileHeader32<Endianness>>(data, 32),
            _ => bail!("it is no ELF file"),
        }
    }
}

fn read<H: FileHeader<Endian = Endianness>>(data: &[u8], bits: u8) -> Result<Elf> {
    let damaged = |error: object::read::Error| anyhow!("it is damaged: {error}");
    let header = H::parse(data).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    let kind = header.e_type(endian);
    let mut elf = Elf {
        machine: Machine { number: header.e_machine(endian), bits },
        is_loadable: kind == ET_DYN || kind == ET_EXEC,
        is_program: kind == ET_EXEC,
        loader: None,
    };
    for segment in header.program_headers(endian, data).map_err(damaged)? {
        if segment.p_type(endian) == PT_INTERP {
            let path =
                segment.data(endian, data).map_err(|()| anyhow!("it is damaged: its loader's name"))?;
            let path = path.split(|&byte| byte == 0).next().unwrap_or_default();
            elf.loader = Some(PathBuf::from(OsStr::from_bytes(path)));
        }
        for entry in segment.dynamic(endian, data).map_err(damaged)?.unwrap_or_default() {
            let value: u64 = entry.d_val(endian).into();
            elf.is_program |= entry.d_tag(endian) == DT_FLAGS_1 && value & DF_1_PIE.0 != 0;
        }
    }
    Ok(elf)
}
