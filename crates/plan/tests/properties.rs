//! What must hold for any bytes, any context, any slot and any detour.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test: it may fail")]

mod oracle;

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Decoder, DecoderOptions, FlowControl, Instruction, InstructionBlock,
};
use kdetour_plan::{Code, Context, MAX_SLOT, Options, Owner, Plan, Refusal, Reserved, Slot, Survey, thunk};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// Instructions that depend on their address, or end, or look odd. `?` is any byte, `~` a small displacement.
const TEMPLATES: &[&str] = &[
    "eb ~",                               // jmp rel8
    "e9 ~ 00 00 00",                      // jmp rel32
    "e9 ? ? ? ?",                         // jmp rel32
    "48 e9 ~ ff ff ff",                   // rex.w jmp rel32
    "66 e9 ? ? ? ?",                      // jmp with an operand-size prefix
    "f2 eb ~",                            // bnd jmp rel8
    "74 ~",                               // je rel8
    "7f ~",                               // jg rel8
    "3e 75 ~",                            // jne rel8 with a hint
    "0f 8c ~ ff ff ff",                   // jl rel32
    "0f 8c ? ? ? ?",                      // jl rel32
    "e2 ~",                               // loop rel8
    "67 e2 ~",                            // loop rel8, ECX
    "e1 ~",                               // loope rel8
    "e0 ~",                               // loopne rel8
    "e3 ~",                               // jrcxz rel8
    "67 e3 ~",                            // jecxz rel8
    "c7 f8 ~ 00 00 00",                   // xbegin rel32
    "66 c7 f8 ~ ff",                      // xbegin rel16
    "e8 ~ 00 00 00",                      // call rel32
    "e8 ? ? ? ?",                         // call rel32
    "e8 00 00 00 00",                     // call $+5
    "66 66 48 e8 ? ? ? ?",                // padded call rel32
    "ff d0",                              // call rax
    "41 ff d3",                           // call r11
    "3e ff d0",                           // notrack call rax
    "ff 14 24",                           // call [rsp]
    "ff d4",                              // call rsp
    "ff 57 ?",                            // call [rdi+disp8]
    "41 ff 94 c4 ? ? ? ?",                // call [r12+rax*8+disp32]
    "ff 15 ? ? 00 00",                    // call [rip+disp32]
    "65 ff 15 ? ? 00 00",                 // call gs:[rip+disp32]
    "67 ff 15 ? ? 00 00",                 // call [eip+disp32]
    "ff 1d ? ? 00 00",                    // call far [rip+disp32]
    "ff 25 ? ? 00 00",                    // jmp [rip+disp32]
    "ff e0",                              // jmp rax
    "c3",                                 // ret
    "f3 c3",                              // rep ret
    "c2 08 00",                           // ret 8
    "48 8b 05 ? ? ? ?",                   // mov rax, [rip+disp32]
    "48 8d 05 ~ ff ff ff",                // lea rax, [rip+disp32]
    "48 8b 05 ~ ff ff ff",                // mov rax, [rip+disp32]
    "80 3d ? ? 00 00 ?",                  // cmp byte [rip+disp32], imm8
    "66 c7 05 ? ? 00 00 ? ?",             // mov word [rip+disp32], imm16
    "48 c7 05 ? ? 00 00 ? ? ? ?",         // mov qword [rip+disp32], imm32
    "f0 48 0f c1 05 ? ? 00 00",           // lock xadd [rip+disp32], rax
    "65 48 8b 05 ? ? 00 00",              // mov rax, gs:[rip+disp32]
    "67 8b 05 ? ? 00 00",                 // mov eax, [eip+disp32]
    "c5 fd 6f 05 ? ? 00 00",              // vmovdqa ymm0, [rip+disp32]
    "c4 e3 7d 0f 05 ? ? 00 00 ?",         // vpalignr ymm0, ymm0, [rip+disp32], imm8
    "62 f1 fe 48 6f 05 ? ? 00 00",        // vmovdqu64 zmm0, [rip+disp32]
    "62 f3 75 59 25 05 ? ? 00 00 ?",      // vpternlogd zmm0{k1}, zmm1, [rip+disp32]{1to16}, imm8
    "8f ea 78 10 05 ? ? 00 00 ? ? 00 00", // bextr eax, [rip+disp32], imm32 (XOP)
    "0f 0f 05 ? ? 00 00 9e",              // pfadd mm0, [rip+disp32]
    "0f ae 05 ? ? ff ff",                 // fxsave [rip+disp32]
    "48 8b 04 25 ? ? ? ?",                // mov rax, [disp32]
    "48 b8 ? ? ? ? ? ? ? ?",              // mov rax, imm64
    "48 a1 ? ? ? ? ? ? ? ?",              // mov rax, [moffs64]
    "55",                                 // push rbp
    "48 89 e5",                           // mov rbp, rsp
    "41 57",                              // push r15
    "48 81 ec ? ? 00 00",                 // sub rsp, imm32
    "31 c0",                              // xor eax, eax
    "90",                                 // nop
    "66 90",                              // two-byte nop
    "0f 1f 44 00 00",                     // five-byte nop
    "66 2e 0f 1f 84 00 00 00 00 00",      // ten-byte nop
    "f3 0f 1e fa",                        // endbr64
    "cc",                                 // int3
    "0f 0b",                              // ud2
    "0f 05",                              // syscall
    "cd 80",                              // int 0x80
    "fb",                                 // sti
    "8e d0",                              // mov ss, eax
    "f4",                                 // hlt
    "06",                                 // no instruction
];

/// A target and everything that is said about it.
#[derive(Clone, Debug)]
struct Question {
    address: u64,
    bytes: Vec<u8>,
    length: Option<usize>,
    fentry: Option<u64>,
    next: Option<u64>,
    image: Option<(u64, u64)>,
    targets: Vec<u64>,
    reserved: Vec<Reserved>,
    slot: Slot,
    detour: u64,
    landing_pad: bool,
}

impl Question {
    fn survey(&self) -> Result<Survey, Refusal> {
        let mut code = Code::new(self.address, &self.bytes);
        if let Some(length) = self.length {
            code = code.with_length(length);
        }
        let _ = thunk(&code);
        let context = Context {
            fentry: self.fentry,
            next_symbol: self.next,
            image: self.image,
            parts: &[],
            branch_targets: &self.targets,
            reserved: &self.reserved,
        };
        Survey::of(&code, &context)
    }

    fn plan(&self, survey: &Survey) -> Result<Plan, Refusal> {
        let options = Options { landing_pad: self.landing_pad };
        Plan::with_options(survey, self.slot, self.detour, options)
    }
}

fn instruction() -> impl Strategy<Value = Vec<u8>> {
    let fill = |(template, bytes, small): (&str, Vec<u8>, i8)| {
        let mut bytes = bytes.into_iter();
        let byte = |word| match word {
            "?" => bytes.next().unwrap(),
            "~" => small.cast_unsigned(),
            word => u8::from_str_radix(word, 16).unwrap(),
        };
        template.split_whitespace().map(byte).collect()
    };
    prop_oneof![
        12 => (select(TEMPLATES), vec(any::<u8>(), 15), -24_i8..24).prop_map(fill),
        1 => vec(any::<u8>(), 1..16),
    ]
}

fn function() -> impl Strategy<Value = Vec<u8>> {
    let landing: &[&[u8]] = &[
        &[],
        &[],
        &[],
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0x0f, 0x1f, 0x44, 0, 0],
        &[0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x1f, 0x44, 0, 0],
    ];
    prop_oneof![
        8 => (select(landing), vec(instruction(), 1..8))
            .prop_map(|(landing, rest)| [landing.to_vec(), rest.concat()].concat()),
        1 => vec(any::<u8>(), 0..40),
    ]
}

/// Small distances, and all others.
fn distance() -> impl Strategy<Value = i64> {
    prop_oneof![-40_i64..40, -0x1_0000_i64..0x1_0000, -0x9000_0000_i64..0x9000_0000, any::<i64>()]
}

fn question() -> impl Strategy<Value = Question> {
    let address = prop_oneof![
        Just(0x40_1000),
        Just(0x7f12_3456_7000),
        Just(0xffff_ffff_8123_4560),
        Just(0xffff_ffff_c000_0010),
        0_u64..64,
        (0_u64..64).prop_map(|below| u64::MAX - below),
        any::<u64>(),
    ];
    let length = option::weighted(0.8, prop_oneof![4 => Just(None), 1 => (0_usize..60).prop_map(Some)]);
    let reserved = (distance(), 0_u32..20);
    (
        (address, function(), length, any::<bool>()),
        (
            option::of(select(&[0_u64, 4, 5, 9][..])),
            option::of(distance()),
            option::of((distance(), distance())),
        ),
        (vec(distance(), 0..2), vec(reserved, 0..2)),
        (distance(), 0..=MAX_SLOT, any::<bool>(), distance()),
    )
        .prop_map(
            |((address, bytes, length, landing_pad), (fentry, next, image), (targets, reserved), rest)| {
                let (slot, capacity, roomy, detour) = rest;
                let at = |distance: i64| address.wrapping_add_signed(distance);
                Question {
                    address,
                    length: length.map(|other| other.unwrap_or(bytes.len())),
                    bytes,
                    fentry: fentry.map(|offset| address.wrapping_add(offset)),
                    next: next.map(at),
                    image: image.map(|(first, end)| (at(first), at(end))),
                    targets: targets.into_iter().map(at).collect(),
                    reserved: reserved
                        .into_iter()
                        .map(|(address, len)| Reserved {
                            address: at(address),
                            len,
                            owner: Owner::Alternative,
                        })
                        .collect(),
                    slot: Slot { address: at(slot), capacity: if roomy { MAX_SLOT } else { capacity } },
                    detour: at(detour),
                    landing_pad,
                }
            },
        )
}

/// As [`question`], but with nothing in the way of a plan except the bytes.
fn easy_question() -> impl Strategy<Value = Question> {
    question().prop_map(|question| {
        let window = if question.address < 1 << 20 || question.address > u64::MAX - (1 << 20) {
            0x7f12_3456_7000
        } else {
            question.address
        };
        Question {
            address: window,
            length: question.length.map(|_| question.bytes.len()),
            fentry: None,
            next: None,
            image: None,
            targets: Vec::new(),
            reserved: Vec::new(),
            slot: Slot { address: window + 0x1_0000, capacity: MAX_SLOT },
            detour: window + 0x2_0000,
            ..question
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Never a panic, and every plan that is made is right.
    #[test]
    fn every_plan_is_right(question in prop_oneof![question(), easy_question()]) {
        let Ok(survey) = question.survey() else { return Ok(()) };
        let Ok(plan) = question.plan(&survey) else { return Ok(()) };
        let given = oracle::Given {
            entry: question.address,
            bytes: &question.bytes,
            length: question.length,
            detour: question.detour,
            landing_pad: question.landing_pad,
        };
        oracle::check(&given, &survey, &plan).map_err(TestCaseError::fail)?;

        let window = survey.window()..survey.window() + 5;
        let displaced = survey.window()..survey.window() + survey.original_bytes().len() as u64;
        prop_assert!(question.targets.iter().all(|target| !window.contains(target)));
        for reserved in question.reserved.iter().filter(|reserved| reserved.len > 0) {
            let end = reserved.address.saturating_add(reserved.len.into());
            prop_assert!(end <= displaced.start || reserved.address >= displaced.end);
        }
        let slot = u128::from(question.slot.address);
        let slot = slot..slot + plan.slot_bytes().len() as u128;
        prop_assert!(slot.end <= 1 << 64 && plan.slot_bytes().len() <= question.slot.capacity);
        prop_assert!(slot.end <= question.address.into() || slot.start >= displaced.end.into());
        prop_assert!(!displaced.contains(&question.detour));
        prop_assert!(!slot.contains(&question.detour.into()));
        prop_assert!(question.fentry.is_none_or(|site| window.start == site + 5));
    }

    /// The reach that a survey names is no promise too much.
    #[test]
    fn slots_within_reach_do(question in easy_question(), low in any::<bool>(), far in any::<bool>()) {
        let Ok(survey) = question.survey() else { return Ok(()) };
        let reach = survey.reach();
        let address = if low { reach.first } else { reach.last };
        if !reach.contains(address) || address > u64::MAX - 4096 {
            return Ok(());
        }
        let detour = if far { question.address ^ 1 << 45 } else { question.detour };
        let slot = Slot { address, capacity: survey.slot_need() };
        let plan = Plan::with_options(&survey, slot, detour, Options { landing_pad: true });
        prop_assert!(plan.is_ok(), "{:?}", plan.err());
    }

    /// iced's own BlockEncoder moves the same instructions; what it makes of them means the same.
    #[test]
    fn block_encoder_agrees(question in easy_question()) {
        let Ok(survey) = question.survey() else { return Ok(()) };
        let Ok(plan) = question.plan(&survey) else { return Ok(()) };
        let skip = usize::try_from(survey.window() - question.address).unwrap();
        let len: usize = survey.displaced().iter().map(|one| one.bytes().len()).sum();
        let code = &question.bytes[skip..skip + len];
        let originals: Vec<_> = Decoder::with_ip(64, code, survey.window(), DecoderOptions::NONE).iter().collect();
        if originals.iter().any(|one| one.is_call_near() || one.is_call_near_indirect()) {
            return Ok(()); // it copies calls as calls, which is what we avoid
        }
        let start = survey.window() + 0x1_0000;
        let block = InstructionBlock::new(&originals, start);
        let encoded = BlockEncoder::encode(64, block, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS).unwrap();
        for (original, &offset) in originals.iter().zip(&encoded.new_instruction_offsets) {
            // It takes the address of an instruction of the block for that of the copy; we keep the original's.
            let operand = original.is_ip_rel_memory_operand().then(|| original.ip_rel_memory_address());
            if originals.iter().any(|one| Some(one.ip()) == operand) {
                continue;
            }
            // It has no offset for what it wrote as several instructions; the oracle follows ours.
            let several = |one: &Instruction, offset: u32| {
                offset == u32::MAX && (one.ip() == original.ip() || leads_to(original, one.ip()))
            };
            let offsets = encoded.new_instruction_offsets.iter();
            if originals.iter().zip(offsets).any(|(one, &offset)| several(one, offset)) {
                continue;
            }
            let theirs = decode_at(&encoded.code_buffer, start, start + u64::from(offset));
            let ours = decode_at(plan.slot_bytes(), plan.trampoline(), plan.ip_map().to_slot(original.ip()).unwrap());
            prop_assert_eq!(theirs.mnemonic(), ours.mnemonic());
            if original.is_loop() || original.is_loopcc() || original.is_jcx_short() {
                continue; // ours goes on over a jump of its own
            }
            if is_direct(original) {
                let to_original = |target: u64| {
                    let old = originals.iter().zip(&encoded.new_instruction_offsets);
                    old.clone()
                        .find(|(_, offset)| start.wrapping_add(u64::from(**offset)) == target)
                        .map_or(target, |(one, _)| one.ip())
                };
                let ours = ours.near_branch_target();
                let ours = plan.ip_map().to_original(ours).unwrap_or(ours);
                prop_assert_eq!(to_original(theirs.near_branch_target()), ours);
            } else {
                prop_assert_eq!(theirs, ours);
            }
        }
    }
}

fn leads_to(one: &Instruction, target: u64) -> bool {
    is_direct(one) && one.near_branch_target() == target
}

fn is_direct(one: &Instruction) -> bool {
    matches!(
        one.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend
    )
}

fn decode_at(bytes: &[u8], start: u64, ip: u64) -> Instruction {
    let at = usize::try_from(ip - start).unwrap();
    Decoder::with_ip(64, &bytes[at..], ip, DecoderOptions::NONE).decode()
}

/// A template that is no instruction would test nothing.
#[test]
fn templates_are_instructions() {
    for template in TEMPLATES {
        let byte = |word| match word {
            "?" | "~" => 0x10,
            word => u8::from_str_radix(word, 16).unwrap(),
        };
        let bytes: Vec<u8> = template.split_whitespace().map(byte).collect();
        let one = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
        let expected = if *template == "06" { 0 } else { bytes.len() };
        let len = if one.is_invalid() { 0 } else { one.len() };
        assert_eq!(len, expected, "{template}");
    }
}
