//! Writes the first inputs of the fuzzer, one for each case of `crates/plan/tests/cases`: `seeds CASES FOLDER`.

#[path = "../../crates/plan/tests/notation/mod.rs"]
mod notation;

use kdetour_fuzz::engine::Header;
use kdetour_plan::{Mode, Returns, Traps};
use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().collect();
    let [_, cases, folder] = &arguments[..] else {
        return Err("usage: seeds CASES FOLDER".into());
    };
    fs::create_dir_all(folder)?;
    let mut count = 0;
    for file in fs::read_dir(cases)? {
        let path = file?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for case in notation::parse(&fs::read_to_string(&path)?) {
            fs::write(Path::new(folder).join(format!("{stem}-{}", case.name)), seed(&case))?;
            count += 1;
        }
    }
    println!("{count} seeds in {folder}");
    Ok(())
}

fn seed(case: &notation::Case) -> Vec<u8> {
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    let from_entry = |address: u64| address.wrapping_sub(case.at).cast_signed();
    let part = case.parts.first();
    let data = case.data.first();
    let length =
        |bytes: Option<&(u64, Vec<u8>)>| bytes.map_or(0, |(_, bytes)| u8::try_from(bytes.len()).unwrap_or(0));
    // What does not fit is something else, and as good a beginning.
    let small = |distance: i64| i8::try_from(distance).unwrap_or(0);
    let place = case.targets.first().copied().or(case.reserved.first().map(|reserved| reserved.address));
    let options = &case.options;
    let header = Header {
        choices: bit(case.mode == Mode::Bits32, 1)
            | bit(case.length.is_none(), 2)
            | bit(options.landing_pad, 4)
            | bit(options.returns == Returns::Slot, 8)
            | bit(options.traps == Traps::Invalid, 16)
            | bit(options.reentry, 32)
            | bit(case.dead, 64)
            | bit(case.before.first() == Some(&0x90), 128),
        shapes: 0,
        knows: bit(case.fentry.is_some(), 1)
            | bit(case.next.is_some(), 2)
            | bit(!case.before.is_empty(), 4)
            | bit(part.is_some(), 8)
            | bit(!case.targets.is_empty(), 16)
            | bit(!case.reserved.is_empty(), 32)
            | bit(data.is_some(), 64)
            | bit(case.image.is_some(), 128),
        next: small(case.next.map_or(0, |next| from_entry(next) - case.bytes.len() as i64)),
        place: small(place.map_or(0, from_entry)),
        length: small(case.length.map_or(0, |length| length as i64 - case.bytes.len() as i64)),
        part: length(part),
        data: length(data),
        address: case.at,
        slot: from_entry(case.slot.address),
        detour: from_entry(case.detour),
        part_at: part.map_or(0, |part| from_entry(part.0) as i32),
        data_at: data.map_or(0, |data| from_entry(data.0) as i32),
    };
    let mut seed = header.write();
    seed.extend(&case.bytes);
    seed.extend(part.map_or(&[][..], |part| &part.1));
    seed.extend(data.map_or(&[][..], |data| &data.1));
    seed
}
