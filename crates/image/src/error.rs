//! Why a file gives no image.

use core::fmt;

/// Why nothing could be read from a file. What is wrong with a part of it only is
/// [left out](crate::Image::left_out) instead.
#[non_exhaustive]
#[derive(Debug)]
pub enum Error {
    /// The file could not be read.
    Read(std::io::Error),
    /// It is neither an ELF nor a PE file, nor a kernel's boot image.
    UnknownFormat,
    /// It is not for x86-32 or x86-64: the number is ELF's `e_machine` or PE's `Machine`.
    Machine(u16),
    /// It is big-endian, or of a class that x86 does not have.
    NotLittleEndian,
    /// A header that everything else hangs on is cut off or wrong.
    Header(&'static str),
    /// It maps no executable bytes.
    NoCode,
    /// The kernel is compressed in a way that is not known here; its first four bytes.
    Compression([u8; 4]),
    /// The compressed kernel is damaged or longer than it says.
    Unpack {
        /// The compression.
        format: &'static str,
        /// What its decoder says.
        why: String,
    },
    /// No table of names was found in the kernel. Give the text of its `/proc/kallsyms` or `System.map`.
    NoKernelSymbols,
    /// All addresses in the text of `/proc/kallsyms` are 0. Read it as root, with `kernel.kptr_restrict` below 2.
    HiddenAddresses,
    /// The text is no list of `ADDRESS TYPE NAME`, or has no `_stext` and `_text`.
    NotSymbols {
        /// The first line that is not, counted from 1; 0 if a symbol is missing.
        line: usize,
    },
    /// The text of `/proc/kallsyms` does not belong to this kernel: its functions are not where the kernel's own
    /// are.
    OtherKernel,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "cannot read the file: {error}"),
            Self::UnknownFormat => {
                f.write_str("neither an ELF or PE file nor a kernel's boot image (vmlinuz)")
            }
            Self::Machine(machine) => {
                write!(f, "not for x86: the file says machine {machine:#x}; only x86-32 and x86-64 are read")
            }
            Self::NotLittleEndian => {
                f.write_str("a big-endian file or one of an unknown class; x86 has none")
            }
            Self::Header(what) => write!(f, "damaged: {what}"),
            Self::NoCode => f.write_str("the file maps no executable bytes"),
            Self::Compression([a, b, c, d]) => {
                write!(
                    f,
                    "the kernel is compressed in an unknown way (it begins {a:02x} {b:02x} {c:02x} {d:02x}); \
                     unpack it first"
                )
            }
            Self::Unpack { format, why } => write!(f, "cannot unpack the kernel ({format}): {why}"),
            Self::NoKernelSymbols => f.write_str(
                "found no symbols in the kernel; give the text of its /proc/kallsyms or System.map as well",
            ),
            Self::HiddenAddresses => f.write_str(
                "all addresses in the list of symbols are 0: read /proc/kallsyms as root, with \
                 kernel.kptr_restrict below 2",
            ),
            Self::NotSymbols { line: 0 } => f.write_str("the list of symbols has neither _stext nor _text"),
            Self::NotSymbols { line } => {
                write!(f, "line {line} of the list of symbols is not `ADDRESS TYPE NAME`")
            }
            Self::OtherKernel => f.write_str(
                "the list of symbols belongs to another kernel: its functions are not where this one's are",
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read(error) => Some(error),
            _ => None,
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Read(error)
    }
}
