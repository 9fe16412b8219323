//! The functions of a file, at the addresses where a process or the kernel would have them.

use anyhow::{Context as _, Result};
use kdetour_image::{Facts, Image};
use kdetour_plan::{Code, Context, Region, Reserved};
use std::path::{Path, PathBuf};

/// Where libraries are taken to be loaded, as Linux does.
pub(crate) const fn library_base(bits: u32) -> u64 {
    if bits == 32 { 0xf700_0000 } else { 0x7f00_0000_0000 }
}

/// A file.
pub(crate) struct Subject {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    pub(crate) kernel: bool,
    image: Image,
}

/// A function of a file, with everything that a survey asks for, at its address in memory.
pub(crate) struct Target<'i> {
    pub(crate) name: String,
    pub(crate) code: Code<'i>,
    fentry: Option<u64>,
    next_symbol: Option<u64>,
    before: &'i [u8],
    dead: bool,
    image: Option<(u64, u64)>,
    parts: Vec<Code<'i>>,
    branch_targets: Vec<u64>,
    reserved: Vec<Reserved>,
    rewritten: Vec<Reserved>,
}

/// The functions of a file, and its read-only data.
pub(crate) struct Targets<'i> {
    pub(crate) all: Vec<Target<'i>>,
    data: Vec<Region<'i>>,
    got: Option<u64>,
}

impl Subject {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let image = Image::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Self { path: path.to_path_buf(), name, kernel: image.is_kernel(), image })
    }

    /// 64 or 32.
    pub(crate) fn bits(&self) -> u32 {
        self.image.mode().bits()
    }

    /// The first and one-past-last address, as the file says.
    pub(crate) fn span(&self) -> (u64, u64) {
        let segments = self.image.segments();
        let first = segments.iter().map(|segment| segment.address).min().unwrap_or(0);
        let end = segments.iter().map(|segment| segment.end()).max().unwrap_or(0);
        (first, end)
    }

    /// The bytes of every segment, each with its address.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.image.segments().iter().map(|segment| (segment.address, self.image.bytes_at(segment.address)))
    }

    /// What the file knows of each function.
    pub(crate) fn facts(&self) -> Vec<Facts<'_>> {
        self.image.functions().iter().map(|function| self.image.facts(function)).collect()
    }

    /// Every function, `slide` above the address that the file says.
    pub(crate) fn targets<'f>(&'f self, facts: &'f [Facts<'_>], slide: u64) -> Targets<'f> {
        let up = |address: u64| address.wrapping_add(slide);
        let slid = |code: &Code<'f>| {
            let moved = Code::in_mode(code.mode(), up(code.address()), code.bytes());
            code.length().map_or(moved, |length| moved.with_length(length))
        };
        let region = |region: &Region<'f>| Region { address: up(region.address), bytes: region.bytes };
        let owned = |reserved: &Reserved| Reserved { address: up(reserved.address), ..*reserved };
        let data = facts.first().map_or(&[][..], |facts| facts.context().data).iter().map(region).collect();
        let functions = self.image.functions().iter().zip(facts);
        let all = functions.map(|(function, facts)| {
            let context = facts.context();
            Target {
                name: self.image.name(function).into_owned(),
                code: slid(&self.image.code(function)),
                fentry: context.fentry.map(up),
                next_symbol: context.next_symbol.map(up),
                before: context.before,
                dead: context.dead,
                image: context.image.map(|(first, end)| (up(first), up(end))),
                parts: context.parts.iter().map(slid).collect(),
                branch_targets: context.branch_targets.iter().map(|&target| up(target)).collect(),
                reserved: context.reserved.iter().map(owned).collect(),
                rewritten: context.rewritten.iter().map(owned).collect(),
            }
        });
        let got = facts.first().and_then(|facts| facts.context().got).map(up);
        Targets { all: all.collect(), data, got }
    }
}

impl Targets<'_> {
    /// What a survey of one of them should know.
    pub(crate) fn context<'t>(&'t self, target: &'t Target<'_>) -> Context<'t> {
        Context {
            fentry: target.fentry,
            next_symbol: target.next_symbol,
            before: target.before,
            dead: target.dead,
            image: target.image,
            parts: &target.parts,
            branch_targets: &target.branch_targets,
            reserved: &target.reserved,
            rewritten: &target.rewritten,
            data: &self.data,
            got: self.got,
        }
    }

    /// Whether another function begins inside the `len` bytes from `address` on, behind the first of them.
    pub(crate) fn neighbour_within(&self, address: u64, len: usize) -> bool {
        let next = self.all.partition_point(|target| target.code.address() <= address);
        self.all.get(next).is_some_and(|next| next.code.address() < address + len as u64)
    }
}
