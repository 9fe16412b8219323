//! What a question is about: code that was given as bytes, or a function of a file.

use crate::args::Raw;
use crate::asm;
use crate::hex;
use crate::markup::printable;
use crate::model::{Host, Model};
use anyhow::{Context as _, Result, bail, ensure};
use kdetour_plan::{Code, Context, Mode};

/// A function to look at.
#[derive(Clone, Debug)]
pub(crate) struct Target<'a> {
    /// Its name, if it has one.
    pub(crate) name: Option<&'a str>,
    /// Its code.
    pub(crate) code: Code<'a>,
    /// What is known about it.
    pub(crate) context: Context<'a>,
}

impl Target<'_> {
    /// What it is called in a title.
    pub(crate) fn title(&self) -> String {
        printable(self.name.unwrap_or("code")).into_owned()
    }
}

/// Where bytes are, unless the caller says it: as programs are linked.
const DEFAULT_ADDRESS: u64 = 0x40_1000;

/// Code given on the command line, owned.
#[derive(Debug)]
pub(crate) struct RawCode {
    mode: Mode,
    address: u64,
    bytes: Vec<u8>,
    before: Vec<u8>,
    length: Option<usize>,
    next: Option<u64>,
    fentry: Option<u64>,
    dead: bool,
}

impl RawCode {
    /// Reads the arguments; none if there are no bytes among them.
    pub(crate) fn read(raw: &Raw) -> Result<Option<Self>> {
        let Some(text) = &raw.bytes else {
            return match raw.given() {
                Some(option) => bail!("{option} goes with --bytes: a file says that itself"),
                None => Ok(None),
            };
        };
        let mode = raw.mode.unwrap_or_default();
        let address = raw.address.unwrap_or(DEFAULT_ADDRESS);
        ensure!(
            !raw.dead || raw.before.is_some(),
            "--dead says something about the bytes of --before: give them, too"
        );
        let bytes = hex::bytes(text).context("--bytes")?;
        ensure!(
            !bytes.is_empty(),
            "--bytes holds no bytes: give the function's code, as in --bytes \"55 48 89 e5\""
        );
        let before = raw.before.as_deref().map_or_else(|| Ok(Vec::new()), hex::bytes).context("--before")?;
        for (option, address) in
            [("--address", Some(address)), ("--next", raw.next), ("--fentry", raw.fentry)]
        {
            fits(mode, option, address)?;
        }
        let room = mode.last_address() - address;
        if bytes.len() as u64 - 1 > room {
            bail!("the {} bytes at {:#x} go beyond the end of the address space", bytes.len(), address);
        }
        if let Some(next) = raw.next.filter(|&next| next <= address) {
            bail!("--next {next:#x} is not behind the entry at {:#x}", address);
        }
        ensure!(
            before.len() as u64 <= address,
            "--before has more bytes than there are addresses below the entry"
        );
        Ok(Some(Self {
            mode,
            address,
            bytes,
            before,
            length: raw.length,
            next: raw.next,
            fentry: raw.fentry,
            dead: raw.dead,
        }))
    }

    /// The target.
    pub(crate) fn target(&self) -> Target<'_> {
        let code = Code::in_mode(self.mode, self.address, &self.bytes);
        let context = Context {
            fentry: self.fentry,
            next_symbol: self.next,
            before: &self.before,
            dead: self.dead,
            ..Context::default()
        };
        Target { name: None, code: self.length.map_or(code, |length| code.with_length(length)), context }
    }

    /// The host, if nobody says.
    pub(crate) const fn host(&self) -> Host {
        Host::of_address(self.mode, self.address)
    }

    /// The memory around the code, for a host. What the code refers to is taken to be there.
    pub(crate) fn model(&self, host: Host) -> Model {
        let named = asm::named(self.mode, self.address, &self.bytes);
        Model::beside(host, self.mode, [self.occupied()], named)
    }

    /// What the code occupies.
    fn occupied(&self) -> (u64, u64) {
        let end = self.address.saturating_add(self.bytes.len().max(self.length.unwrap_or(0)) as u64);
        (self.address - self.before.len() as u64, end)
    }
}

/// Refuses an address that the mode does not have.
pub(crate) fn fits(mode: Mode, option: &str, address: Option<u64>) -> Result<()> {
    match address.filter(|&address| address > mode.last_address()) {
        Some(address) => {
            bail!("{option} {address:#x} does not exist in 32-bit code: addresses end at 0xffffffff")
        }
        None => Ok(()),
    }
}
