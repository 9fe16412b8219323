//! The DLL that stands in for `ntoskrnl.exe` and `hal.dll` where Wine's own lack something, and drivers that are given it.
//!
//! A driver is not changed for it, but for the name of the library in its table of imports: code and data are those of the `.sys` that was
//! built.

use crate::drivers::{Machine, write_checksum};
use crate::shell::{Step, query, write_if_changed};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Its name: as long as that of the library that it stands in for.
const NAME: &[u8] = b"kdntshim.exe";
const KERNEL: &[u8] = b"ntoskrnl.exe";

/// Builds it.
pub(super) fn build(workspace: &Workspace, machine: Machine) -> Result<PathBuf> {
    let folder = workspace.out.join("drivers").join(machine.name());
    let sources = workspace.root.join("kernel/windows");
    let (object, definitions, dll) =
        (folder.join("shim.o"), folder.join("shim.def"), folder.join("kdntshim.exe"));
    let gcc = machine.compiler().0;
    run(
        workspace,
        machine,
        "compile shim.c",
        Command::new(gcc)
            .args(["-std=gnu99", "-O2", "-Wall", "-Wextra", "-c"])
            .arg(sources.join("tests/shim.c"))
            .arg("-o")
            .arg(&object),
    )?;
    let symbols = query(Command::new(gcc.replace("gcc", "nm")).arg("--defined-only").arg(&object))?;
    let list = sources.join("imports.txt");
    let list = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    write_if_changed(&definitions, forwarders(&list, &names(&symbols), machine).as_bytes())?;
    run(
        workspace,
        machine,
        "link the shim",
        Command::new(gcc)
            .args(["-shared", "-static-libgcc", "-Wl,--kill-at", "-o"])
            .arg(&dll)
            .args([&object, &definitions])
            .arg("-lntdll"),
    )?;
    Ok(dll)
}

fn run(workspace: &Workspace, machine: Machine, what: &str, command: &mut Command) -> Result<()> {
    Step {
        what: &format!("{what} for {}", machine.name()),
        log: workspace.log(&format!("drivers-{}-shim", machine.name())),
        advice: "the log has the errors",
    }
    .run(command)
    .map(drop)
}

/// The functions that an object defines, without what calling conventions put around their names.
fn names(symbols: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        let name = line.split_whitespace().nth(2)?;
        let plain = name.split('@').find(|part| !part.is_empty())?;
        Some([plain.to_owned(), plain.trim_start_matches('_').to_owned()])
    };
    symbols.lines().filter_map(name).flatten().collect()
}

/// What is not there is Wine's: exports that are forwarded.
fn forwarders(list: &str, own: &BTreeSet<String>, machine: Machine) -> String {
    let mut text = "EXPORTS\n".to_owned();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, x64, i386] = words[..] else { continue };
        let library = if machine == Machine::X64 { x64 } else { i386 };
        if library != "-" && !own.contains(name) {
            text.push_str(&format!("{name} = {library}.{name}\n"));
        }
    }
    text
}

/// The driver with the library's name in place of those of `ntoskrnl.exe` and `hal.dll`.
pub(super) fn give(driver: &Path, to: &Path) -> Result<()> {
    let mut image = fs::read(driver).with_context(|| format!("cannot read {}", driver.display()))?;
    rename(&mut image).with_context(|| driver.display().to_string())?;
    write_checksum(&mut image)?;
    fs::write(to, &image).with_context(|| format!("cannot write {}", to.display()))
}

fn rename(image: &mut [u8]) -> Result<()> {
    let (places, kernel) = {
        let file = object::File::parse(&*image).context("it is no image")?;
        let (table, kernel) = match &file {
            object::File::Pe32(file) => table(file)?,
            object::File::Pe64(file) => table(file)?,
            _ => bail!("it is no PE image"),
        };
        (table, kernel)
    };
    for place in places {
        image
            .get_mut(place..place + 4)
            .context("the image is cut short")?
            .copy_from_slice(&kernel.1.to_le_bytes());
    }
    let name = image.get_mut(kernel.0..kernel.0 + KERNEL.len()).context("the image is cut short")?;
    name.copy_from_slice(NAME);
    Ok(())
}

/// Where in the file each library's descriptor has the address of its name; where the kernel's name is in the file, and its address.
fn table<Pe: object::read::pe::ImageNtHeaders>(
    file: &object::read::pe::PeFile<'_, Pe>,
) -> Result<(Vec<usize>, (usize, u32))> {
    /// Where a descriptor has it, and how long one is (PE format, "Import Directory Table").
    const IN_DESCRIPTOR: u32 = 12;
    const DESCRIPTOR: u32 = 20;
    let directory =
        file.data_directory(object::pe::IMAGE_DIRECTORY_ENTRY_IMPORT).context("it imports nothing")?;
    let start = directory.virtual_address.get(object::LittleEndian);
    let in_file = |address: u32| {
        let range = file.section_table().iter().find_map(|section| section.pe_file_range_at(address));
        range.map(|(place, _)| place as usize).context("an address of the import table is in no section")
    };
    let imports = file.import_table()?.context("it imports nothing")?;
    let mut places = Vec::new();
    let mut kernel = None;
    let mut descriptors = imports.descriptors()?;
    let mut at = start;
    while let Some(descriptor) = descriptors.next()? {
        let name = descriptor.name.get(object::LittleEndian);
        if imports.name(name)?.eq_ignore_ascii_case(KERNEL) {
            kernel = Some((in_file(name)?, name));
        }
        places.push(in_file(at)? + IN_DESCRIPTOR as usize);
        at += DESCRIPTOR;
    }
    Ok((places, kernel.context("it imports nothing of ntoskrnl.exe")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_shim_has_is_not_forwarded() {
        let own = names("0 T KeA\n1 T _KeB@8\n2 T @KfC@4\n3 t local\n");
        let list = "# KeX\nKeA ntoskrnl.exe ntoskrnl.exe\nKeB ntoskrnl.exe ntoskrnl.exe\nKfC - hal.dll\nKeD - ntoskrnl.exe\n";
        assert_eq!(forwarders(list, &own, Machine::I386), "EXPORTS\nKeD = ntoskrnl.exe.KeD\n");
        assert_eq!(forwarders(list, &own, Machine::X64), "EXPORTS\n");
    }
}
