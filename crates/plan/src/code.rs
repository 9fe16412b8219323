//! What a survey is given: the bytes of a function, and what the environment knows about them.

/// The longest x86 instruction, in bytes (Intel SDM volume 2, section 2.3.11).
pub const MAX_INSTRUCTION: usize = 15;

/// How the processor decodes the code.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// 64-bit long mode.
    #[default]
    Bits64,
    /// 32-bit protected mode, or compatibility mode; flat segments.
    Bits32,
}

impl Mode {
    /// 64 or 32.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits64 => 64,
            Self::Bits32 => 32,
        }
    }

    /// The highest address.
    pub const fn last_address(self) -> u64 {
        match self {
            Self::Bits64 => u64::MAX,
            Self::Bits32 => u32::MAX as u64,
        }
    }

    /// An address as the processor computes it: modulo the size of the address space.
    pub const fn wrap(self, address: u64) -> u64 {
        address & self.last_address()
    }
}

/// The code that a survey looks at. A plan is bound to exactly these bytes.
#[derive(Clone, Copy, Debug)]
pub struct Code<'a> {
    mode: Mode,
    address: u64,
    bytes: &'a [u8],
    length: Option<usize>,
}

impl<'a> Code<'a> {
    /// 64-bit code whose first byte, `bytes[0]`, is the function's entry at `address`. `bytes` may end anywhere
    /// after the window; give the whole function, so that its branches can be looked at.
    pub const fn new(address: u64, bytes: &'a [u8]) -> Self {
        Self::in_mode(Mode::Bits64, address, bytes)
    }

    /// As [`new`](Self::new), for code of either mode.
    pub const fn in_mode(mode: Mode, address: u64, bytes: &'a [u8]) -> Self {
        Self { mode, address: mode.wrap(address), bytes, length: None }
    }

    /// Says how long the function is, from symbol bounds. Only with it can the survey prove that no branch of
    /// the function lands in the window.
    #[must_use]
    pub const fn with_length(mut self, length: usize) -> Self {
        self.length = Some(length);
        self
    }

    /// How the code is decoded.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// The function's entry.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// The readable bytes from the entry on.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The function's length in bytes, if known.
    pub const fn length(&self) -> Option<usize> {
        self.length
    }
}

/// Bytes at an address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Region<'a> {
    /// Of the first byte.
    pub address: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// Who else patches, or depends on the address of, a piece of code.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// An instruction with a fixup in the exception table: it would lose it when moved.
    ExceptionTable,
    /// A jump label (static key) site of the kernel.
    JumpLabel,
    /// A static call site of the kernel.
    StaticCall,
    /// An alternatives or SMP-lock site, which the kernel rewrites.
    Alternative,
    /// An ftrace site other than the function's own entry site.
    Ftrace,
    /// A trapping instruction with an entry in the bug table (`WARN`, `BUG`).
    BugTable,
    /// A kprobe, armed or not: the kernel would arm it in the middle of the patch.
    Kprobe,
}

/// Bytes that belong to somebody else and must stay where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// First byte.
    pub address: u64,
    /// Number of bytes, at least 1.
    pub len: u32,
    /// Who owns them.
    pub owner: Owner,
}

/// What the environment knows about the code. The default knows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// The function's own five-byte ftrace entry site (`nop` or `call __fentry__`), if it has one. The window is
    /// put behind it: overwriting such a site disables ftrace until reboot.
    pub fentry: Option<u64>,
    /// Where the next symbol starts: what lies between the function's end and here is padding if it decodes so.
    pub next_symbol: Option<u64>,
    /// The bytes between the end of the function before and the entry; empty if unknown. They may hold the cave
    /// of a [`ShortJump`](crate::Shape::ShortJump) if they are all `int3`, or padding and [`dead`](Self::dead).
    pub before: &'a [u8],
    /// Nothing runs through [`before`](Self::before): it is there to be patched (the kernel's `__pfx_` bytes, the
    /// pad in front of a hot-patchable function).
    pub dead: bool,
    /// First and one-past-last address of the image that holds the function. A `jmp` at the entry that leaves it
    /// is taken for somebody else's hook.
    pub image: Option<(u64, u64)>,
    /// Other pieces of the function, each by itself with its own address: the `.cold` part that a compiler moves
    /// away. They are looked through for branches into the window.
    pub parts: &'a [Code<'a>],
    /// Addresses that other code is known to jump to (exception landing pads, fixups).
    pub branch_targets: &'a [u64],
    /// Bytes that belong to others.
    pub reserved: &'a [Reserved],
    /// Bytes of a file that are other ones in the running image: rewritten once, before anything can be detoured.
    pub rewritten: &'a [Reserved],
    /// Read-only data of the image, where jump tables may be; sorted by address.
    pub data: &'a [Region<'a>],
    /// Where 32-bit position-independent code computes addresses from: `_GLOBAL_OFFSET_TABLE_`. Entries of its
    /// jump tables are relative to it.
    pub got: Option<u64>,
}
