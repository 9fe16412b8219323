//! The functions of a file, at the addresses where it is taken to be loaded.

use crate::args::Reading;
use crate::hex;
use crate::markup::printable;
use crate::model::{Host, Model};
use crate::target::{Target, fits};
use anyhow::{Context as _, Result, anyhow, bail};
use kdetour_image::{Function, Image, Kind, Options};
use kdetour_plan::{Code, Context, Mode, Region, Reserved};
use std::path::Path;

/// A file, read, with the memory around it.
pub(crate) struct File {
    image: Image,
    /// What is added to the file's addresses.
    base: u64,
    model: Model,
}

/// An image that is linked to begin below this address can be loaded anywhere: nobody maps these.
const LOWEST: u64 = 0x1_0000;

impl File {
    /// Reads a file.
    pub(crate) fn open(path: &Path, reading: &Reading, host: Option<Host>) -> Result<Self> {
        let mut options = Options::default();
        if let Some(list) = &reading.kallsyms {
            regular(list)?;
            let text = std::fs::read(list).with_context(|| format!("cannot read {}", list.display()))?;
            let lossy =
                |error: std::string::FromUtf8Error| String::from_utf8_lossy(error.as_bytes()).into_owned();
            options.kallsyms = Some(String::from_utf8(text).unwrap_or_else(lossy));
        }
        regular(path)?;
        // The error's text has that of its cause already.
        let named = |error| anyhow!("{}: {error}", path.display());
        let image = Image::open_with(path, &options).map_err(named)?;
        drop(options);
        let is_module = image.kind() == Kind::Object && path.to_string_lossy().contains(".ko");
        let of_kind = if image.is_kernel() || is_module { Host::Kernel } else { Host::Process };
        let host = host.unwrap_or(of_kind);
        let mode = image.mode();
        fits(mode, "--base", reading.base)?;
        let low = image.segments().first().is_none_or(|first| first.address < LOWEST);
        // A kernel has its per-CPU data at 0, but its code in its place.
        let anywhere = low && !image.is_kernel();
        let base = if anywhere { reading.base.unwrap_or(base_of(host, mode)) } else { 0 };
        let end = image.segments().iter().map(|segment| segment.end()).max().unwrap_or(0);
        if end.checked_add(base).is_none_or(|end| end > mode.last_address()) {
            bail!("{}: the image does not fit behind --base {base:#x}", path.display());
        }
        let occupied = image.segments().iter().map(|segment| (segment.address + base, segment.end() + base));
        let model = Model::new(host, mode, occupied);
        Ok(Self { image, base, model })
    }

    /// What was read.
    pub(crate) const fn image(&self) -> &Image {
        &self.image
    }

    /// What was added to the file's addresses.
    pub(crate) const fn base(&self) -> u64 {
        self.base
    }

    /// The memory around it.
    pub(crate) const fn model(&self) -> &Model {
        &self.model
    }

    /// The function that the caller names, or whose address it gives: as in the file, or where it is loaded.
    pub(crate) fn find(&self, wanted: &str) -> Result<&Function> {
        if let Some(function) = self.image.function_by_name(wanted) {
            return Ok(function);
        }
        if !wanted.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(self.unknown(wanted));
        }
        let given = hex::address(wanted)?;
        let places = [Some(given), given.checked_sub(self.base)];
        if let Some(function) = places.into_iter().flatten().find_map(|place| self.image.function_at(place)) {
            return Ok(function);
        }
        match places.into_iter().flatten().find_map(|place| self.image.function_around(place)) {
            Some(around) => Err(anyhow!(
                "{wanted} lies inside {}, which begins at {:#x}: ask about that",
                printable(&self.image.name(around)),
                around.address().wrapping_add(self.base)
            )),
            None => {
                Err(anyhow!("no function begins at {wanted}; `kdetour scan --plans -` lists all of them"))
            }
        }
    }

    /// The addresses of further functions of that name.
    pub(crate) fn namesakes(&self, name: &str) -> Vec<u64> {
        let all = self.image.functions_by_name(name).skip(1);
        all.map(|function| function.address().wrapping_add(self.base)).collect()
    }

    fn unknown(&self, wanted: &str) -> anyhow::Error {
        let lower = wanted.to_lowercase();
        let mut like: Vec<String> = Vec::new();
        for function in self.image.functions() {
            let name = self.image.name(function);
            if like.len() < 5 && name.to_lowercase().contains(&lower) {
                like.push(printable(&name).into_owned());
            }
        }
        let count = self.image.functions().len();
        let hint = match like.as_slice() {
            [] => format!(
                "none of the {count} functions has a name like it. `kdetour scan --plans -` lists them, and `kdetour \
                 scan` says what was left out, such as code that is freed after boot; give an address, as 0x401000, if \
                 the function has no name"
            ),
            like => format!("did you mean {}?", like.join(", ")),
        };
        anyhow!("no function is called {wanted:?}: {hint}")
    }

    /// Lets `ask` look at a function.
    pub(crate) fn with_target<R>(&self, function: &Function, ask: impl FnOnce(&Target<'_>) -> R) -> R {
        let name = self.image.name(function);
        let facts = self.image.facts(function);
        let code = self.image.code(function);
        let context = facts.context();
        if self.base == 0 {
            return ask(&Target { name: Some(&name), code, context });
        }
        let moved = Moved::new(&context, self.base, self.image.mode());
        ask(&Target { name: Some(&name), code: moved.code(&code), context: moved.context(&context) })
    }
}

/// Devices and pipes have no end, or none soon.
fn regular(path: &Path) -> Result<()> {
    let about = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if about.is_dir() {
        bail!("{} is a directory: name the files in it", path.display());
    }
    if !about.is_file() {
        bail!("{} is no file but a device or pipe: copy what it holds into a file first", path.display());
    }
    Ok(())
}

/// Where a file is taken to be loaded that can be loaded anywhere: as Linux does it, without randomness.
const fn base_of(host: Host, mode: Mode) -> u64 {
    match (host, mode) {
        (_, Mode::Bits32) => 0xf700_0000,
        (Host::Process, _) => 0x7f00_0000_0000,
        // Behind the model's own module.
        (Host::Kernel, _) => 0xffff_ffff_c100_0000,
    }
}

/// What is known about a function, at other addresses.
struct Moved<'a> {
    base: u64,
    mode: Mode,
    parts: Vec<Code<'a>>,
    branch_targets: Vec<u64>,
    reserved: Vec<Reserved>,
    rewritten: Vec<Reserved>,
    data: Vec<Region<'a>>,
}

impl<'a> Moved<'a> {
    fn new(context: &Context<'a>, base: u64, mode: Mode) -> Self {
        let at = |address: u64| mode.wrap(address.wrapping_add(base));
        let reserved = |reserved: &Reserved| Reserved { address: at(reserved.address), ..*reserved };
        Self {
            base,
            mode,
            parts: context.parts.iter().map(|part| moved(part, at(part.address()))).collect(),
            branch_targets: context.branch_targets.iter().map(|&target| at(target)).collect(),
            reserved: context.reserved.iter().map(reserved).collect(),
            rewritten: context.rewritten.iter().map(reserved).collect(),
            data: context.data.iter().map(|data| Region { address: at(data.address), ..*data }).collect(),
        }
    }

    fn at(&self, address: u64) -> u64 {
        self.mode.wrap(address.wrapping_add(self.base))
    }

    fn code<'b>(&self, code: &Code<'b>) -> Code<'b> {
        moved(code, self.at(code.address()))
    }

    fn context<'b>(&'b self, context: &Context<'b>) -> Context<'b> {
        // All fields by name: one that is added must not be forgotten here.
        let Context {
            fentry,
            next_symbol,
            before,
            dead,
            image,
            parts: _,
            branch_targets: _,
            reserved: _,
            rewritten: _,
            data: _,
            got,
        } = *context;
        Context {
            fentry: fentry.map(|site| self.at(site)),
            next_symbol: next_symbol.map(|next| self.at(next)),
            before,
            dead,
            image: image.map(|(start, end)| (self.at(start), self.at(end))),
            parts: &self.parts,
            branch_targets: &self.branch_targets,
            reserved: &self.reserved,
            rewritten: &self.rewritten,
            data: &self.data,
            got: got.map(|got| self.at(got)),
        }
    }
}

/// The same code at another address.
fn moved<'a>(code: &Code<'a>, address: u64) -> Code<'a> {
    let moved = Code::in_mode(code.mode(), address, code.bytes());
    code.length().map_or(moved, |length| moved.with_length(length))
}
