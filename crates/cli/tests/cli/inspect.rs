//! `kdetour inspect`, as others use it: the JSON is a contract.

use crate::command::{kdetour, kdetour_line as run, libc};
use serde_json::{Value, json};

const KEYS: [&str; 14] = [
    "accepted",
    "cave",
    "detour",
    "displaced",
    "entry",
    "hazards",
    "ip_map",
    "mode",
    "name",
    "patch",
    "refusal",
    "shape",
    "slot",
    "window",
];

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_plan_of_64_bit_bytes() {
    // push rbp / mov rbp, rsp / push r15 / ret
    let run = run(
        "inspect --bytes 554889e54157c3 --mode 64 --address 0x401000 --slot 0x500000 --detour 0x600000 --json",
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
    let expected = json!({
        "name": null, "mode": 64, "entry": "0x401000", "detour": "0x600000",
        "accepted": true, "refusal": null, "shape": "Jump5",
        "window": {"address": "0x401000", "len": 5},
        "displaced": [
            {"address": "0x401000", "bytes": "55", "text": "push rbp"},
            {"address": "0x401001", "bytes": "4889e5", "text": "mov rbp, rsp"},
            {"address": "0x401004", "bytes": "4157", "text": "push r15"},
        ],
        // push rbp / mov rbp, rsp / push r15 / jmp 0x401006
        "slot": {"address": "0x500000", "bytes": "554889e54157e9fb0ff0ff", "trampoline_offset": 0},
        // jmp 0x600000
        "patch": {"address": "0x401000", "expected": "554889e541", "new": "e9fbef1f00"},
        "cave": null,
        "ip_map": [
            ["0x401000", "0x500000"], ["0x401001", "0x500001"], ["0x401004", "0x500004"], ["0x401006", "0x500006"],
        ],
        "hazards": run.json()["hazards"].clone(),
    });
    assert_eq!(run.json(), expected);
    // Without --length it is not known how long the function is.
    assert_eq!(run.json()["hazards"][0]["kind"], "LengthUnknown");
}

#[test]
fn a_plan_of_32_bit_bytes() {
    // push ebp / mov ebp, esp / sub esp, 8 / ret
    let run = run(
        "inspect --bytes 5589e583ec08c3 --length 7 --mode 32 --address 0x8048000 --slot 0x9000000 --detour 0xa000000 --json",
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
    let plan = run.json();
    assert_eq!(plan["mode"], 32);
    assert_eq!(plan["shape"], "Jump5");
    // jmp 0xa000000
    assert_eq!(plan["patch"], json!({"address": "0x8048000", "expected": "5589e583ec", "new": "e9fb7ffb01"}));
    // push ebp / mov ebp, esp / sub esp, 8 / jmp 0x8048006
    assert_eq!(plan["slot"]["bytes"], "5589e583ec08e9fb7f04ff");
    assert_eq!(plan["hazards"], json!([]));
}

#[test]
fn the_slot_is_the_one_that_was_given() {
    // With the slot where the jump's displacement repeats the original bytes, the jump keeps them.
    let run = run(
        "inspect --bytes 554889e54157c3 --length 7 --address 0x401000 --slot 0x4225994d --detour 0x600000 --json",
    );
    let plan = run.json();
    assert_eq!(plan["shape"], "Jump5Kept");
    assert_eq!(plan["slot"]["address"], "0x4225994d");
    assert_eq!(plan["slot"]["trampoline_offset"], 5);
    assert_eq!(plan["patch"]["new"], "e94889e541");
}

#[test]
fn a_model_finds_what_is_not_given() {
    let plan = run("inspect --bytes 554889e54157c3 --length 7 --json").json();
    assert_eq!(plan["entry"], "0x401000");
    assert_eq!(plan["detour"], "0x555555550000");
    assert_eq!(plan["shape"], "Jump5Kept");
    // Kernel addresses are a kernel's: no address can be chosen, and the detour is a module's.
    let plan = run("inspect --bytes 554889e54157c3 --length 7 --address 0xffffffff81000000 --json").json();
    assert_eq!(plan["shape"], "Jump5");
    assert_eq!(plan["slot"]["address"], "0xffffffffc0001000");
    assert_eq!(plan["detour"], "0xffffffffc0800000");
}

#[test]
fn a_cave_is_told() {
    // mov edi, edi behind five int3
    let run = run(
        "inspect --mode 32 --bytes 8bff558bec5dc3 --before cccccccccc --shape ShortJump --slot 0x500000 --detour 0x600000 --json",
    );
    let plan = run.json();
    assert_eq!(plan["patch"], json!({"address": "0x401000", "expected": "8bff", "new": "ebf9"}));
    // jmp 0x600000
    assert_eq!(plan["cave"], json!({"address": "0x400ffb", "expected": "cccccccccc", "new": "e900f01f00"}));
    assert_eq!(plan["window"]["len"], 2);
}

#[test]
fn a_refusal_has_all_keys() {
    // int3
    let run = run("inspect --bytes cc --json");
    assert_eq!(run.code, 2);
    let refused = run.json();
    assert_eq!(keys(&refused), KEYS);
    assert_eq!(refused["accepted"], false);
    assert_eq!(refused["refusal"], json!({"reason": "Breakpoint", "address": "0x401000"}));
    for key in ["shape", "window", "slot", "patch", "cave"] {
        assert_eq!(refused[key], Value::Null, "{key}");
    }
    for key in ["displaced", "ip_map", "hazards"] {
        assert_eq!(refused[key], json!([]), "{key}");
    }
    let accepted = kdetour(["inspect", "--bytes", "55 48 89 e5 41 57 c3", "--json"]).json();
    assert_eq!(keys(&accepted), KEYS);
}

#[test]
fn a_refusal_in_words_says_what_to_do() {
    let run = run("inspect --bytes cc");
    assert_eq!(run.code, 2);
    assert!(run.stdout.contains("refused: Breakpoint at 0x401000"), "{}", run.stdout);
    assert!(run.stdout.contains("Remove the kprobe"), "{}", run.stdout);
}

#[test]
fn colours_only_where_they_are_wanted() {
    let plain = run("inspect --bytes 554889e54157c3");
    assert!(!plain.stdout.contains('\u{1b}'));
    assert!(plain.stdout.contains("accepted as Jump5Kept"), "{}", plain.stdout);
    let coloured = run("inspect --bytes 554889e54157c3 --color always");
    assert!(coloured.stdout.contains('\u{1b}'));
}

#[test]
fn bad_input_is_an_error_in_words() {
    for (line, says) in [
        ("inspect", "Usage"),
        ("inspect --bytes", "--bytes"),
        ("inspect --bytes 5", "two"),
        ("inspect --bytes zz", "hexadecimal"),
        ("inspect --bytes c3 --mode 16", "32 and 64"),
        ("inspect --bytes c3 --address 0xg", "0x401000"),
        ("inspect --bytes c3 --mode 32 --address 0x100000000", "32-bit"),
        ("inspect --bytes c3 --mode 32 --slot 0x100000000", "32-bit"),
        ("inspect --bytes 9090 --address 0xffffffffffffffff", "address space"),
        ("inspect --bytes c3 --next 0x401000", "--next"),
        ("inspect --bytes c3 --shape Jump6", "WholeInstruction"),
        ("inspect --bytes c3 /bin/true main", "cannot be used"),
        ("inspect --mode 32 /bin/true main", "--bytes"),
        ("inspect /nonexistent main", "/nonexistent"),
        ("inspect / main", "directory"),
        ("inspect /dev/zero main", "device"),
        ("inspect /etc/passwd main", "/etc/passwd"),
    ] {
        let run = run(line);
        assert_eq!(run.code, 1, "{line}: {} {}", run.stdout, run.stderr);
        assert!(run.stderr.contains(says), "{line}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{line}");
    }
    let empty = kdetour(["inspect", "--bytes", ""]);
    assert_eq!((empty.code, empty.stdout.as_str()), (1, ""), "{}", empty.stderr);
}

#[test]
fn odd_bytes_never_panic() {
    for mode in ["32", "64"] {
        for address in ["0", "0xffffffff", "0x7ffffffffff0", "0xfffffffffffffff0"] {
            for bytes in [
                "00",
                "ff",
                "f2f3f2f3f2f3f2f3f2f3f2f3f2f3f2f3",
                "e9fbffffff",
                "ebfe",
                "e8000000005b",
                "0f0b",
                "62f1",
            ] {
                for length in ["0", "1", "1000000"] {
                    let run = kdetour([
                        "inspect",
                        "--mode",
                        mode,
                        "--address",
                        address,
                        "--bytes",
                        bytes,
                        "--length",
                        length,
                        "--json",
                    ]);
                    assert!((0..=2).contains(&run.code), "{mode} {address} {bytes}");
                    assert_eq!(
                        run.code == 1,
                        run.stdout.is_empty(),
                        "{mode} {address} {bytes}: {}",
                        run.stderr
                    );
                }
            }
        }
    }
}

#[test]
fn a_function_of_a_file_by_name_and_address() {
    let libc = libc();
    let libc = libc.to_str().unwrap();
    let by_name = kdetour(["inspect", libc, "malloc", "--json"]);
    assert_eq!(by_name.code, 0, "{}", by_name.stderr);
    let plan = by_name.json();
    assert_eq!(plan["name"], "malloc");
    let entry = plan["entry"].as_str().unwrap();
    assert!(entry.starts_with("0x7f00"), "{entry}");
    let by_address = kdetour(["inspect", libc, entry, "--json"]).json();
    assert_eq!(by_address["patch"], plan["patch"]);
    // At the file's own addresses.
    let unmoved = kdetour(["inspect", libc, "malloc", "--base", "0", "--json"]).json();
    let address =
        |text: &Value| u64::from_str_radix(text.as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(address(&unmoved["entry"]) + 0x7f00_0000_0000, address(&plan["entry"]));

    let text = kdetour(["inspect", libc, "malloc"]).stdout;
    assert!(text.contains("malloc at 0x7f00") && text.contains("jump back to malloc+0x"), "{text}");
    let inside = format!("{:#x}", address(&plan["entry"]) + 1);
    let inside = kdetour(["inspect", libc, &inside]);
    assert!(inside.code == 1 && inside.stderr.contains("inside malloc"), "{}", inside.stderr);
    let unknown = kdetour(["inspect", libc, "mallo"]);
    assert!(unknown.code == 1 && unknown.stderr.contains("did you mean"), "{}", unknown.stderr);
}
