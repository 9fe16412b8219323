//! A machine that a commit can be watched on: memory, and a list of everything that was done to it.

use super::breakpoints::Breakpoints;
use crate::Error;
use crate::host::{BreakpointHook, Function, Host, Quiesce, Rendezvous, Span, Text};
use kdetour_plan::Reach;
use std::cell::RefCell;
use std::format;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

/// Memory from `base` on, and the log of what was done.
pub(crate) struct Machine {
    state: Rc<RefCell<Inside>>,
}

struct Inside {
    base: u64,
    memory: Vec<u8>,
    log: Vec<String>,
    /// How many writes succeed before every further one fails.
    writes_left: usize,
    /// What a rendezvous finds in a window.
    found_in_window: Option<u64>,
}

impl Machine {
    pub(crate) fn new(base: u64, memory: &[u8]) -> Self {
        let memory = memory.to_vec();
        let inside = Inside { base, memory, log: Vec::new(), writes_left: usize::MAX, found_in_window: None };
        Self { state: Rc::new(RefCell::new(inside)) }
    }

    pub(crate) fn fail_after(&self, writes: usize) {
        self.state.borrow_mut().writes_left = writes;
    }

    /// How many of the next `count` writes fail, counted from write number `from` on; later ones succeed.
    pub(crate) fn heal(&self) {
        self.state.borrow_mut().writes_left = usize::MAX;
    }

    pub(crate) fn park_thread_at(&self, address: u64) {
        self.state.borrow_mut().found_in_window = Some(address);
    }

    pub(crate) fn memory(&self) -> Vec<u8> {
        self.state.borrow().memory.clone()
    }

    pub(crate) fn poke(&self, address: u64, byte: u8) {
        let mut inside = self.state.borrow_mut();
        let at = usize::try_from(address - inside.base).unwrap();
        inside.memory[at] = byte;
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.state.borrow().log.clone()
    }

    fn note(&self, what: &str) {
        self.state.borrow_mut().log.push(what.into());
    }
}

pub(crate) struct SimulatedText(Rc<RefCell<Inside>>);

impl Text for SimulatedText {
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut inside = self.0.borrow_mut();
        if inside.writes_left == 0 {
            return Err(Error::Host(5));
        }
        inside.writes_left -= 1;
        let at = usize::try_from(address - inside.base).unwrap();
        inside.memory[at..at + bytes.len()].copy_from_slice(bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        inside.log.push(format!("write {address:x} {hex}"));
        Ok(())
    }
}

impl Host for Machine {
    type Text = SimulatedText;

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let inside = self.state.borrow();
        let unreadable = Error::Unreadable { address };
        let at = address.checked_sub(inside.base).ok_or(unreadable)?;
        let at = usize::try_from(at).map_err(|_| unreadable)?;
        let found = inside.memory.get(at..at + bytes.len()).ok_or(unreadable)?;
        bytes.copy_from_slice(found);
        Ok(())
    }

    fn function(&self, _: u64) -> Result<Function, Error> {
        Ok(Function::default())
    }

    fn executable_memory(&self, _: usize, _: Reach) -> Option<Span> {
        None
    }

    fn open_text(&self, _: &[Span]) -> Result<SimulatedText, Error> {
        Ok(SimulatedText(Rc::clone(&self.state)))
    }

    fn sync_cores(&self) {
        self.note("sync_cores");
    }

    fn lock_text(&self) {
        self.note("lock_text");
    }

    fn unlock_text(&self) {
        self.note("unlock_text");
    }
}

impl BreakpointHook for Machine {
    fn breakpoints(&self) -> &'static Breakpoints {
        static NONE: Breakpoints = Breakpoints::new();
        &NONE
    }
}

// SAFETY: the machine has no threads and no trap handlers.
unsafe impl Quiesce for Machine {
    fn quiesce(&self) {
        self.note("quiesce");
    }
}

impl Rendezvous for Machine {
    fn rendezvous(
        &self,
        boundaries: &[u64],
        work: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let found = self.state.borrow().found_in_window;
        if let Some(address) = found.filter(|address| boundaries.contains(address)) {
            return Err(Error::ThreadInWindow { address });
        }
        self.note("park");
        let outcome = work();
        self.note("release");
        outcome
    }
}

mod tests {
    use super::*;
    use crate::commit::{Alone, Change, Direction, SHAPES, live, local, rendezvous};
    use kdetour_plan::{Code, Context, Options, Patch, Plan, Reach, Slot, Survey};
    use std::vec;

    const T: u64 = 0x1000;
    /// push rbp / mov rbp,rsp / push r15 / ret, and sub rsp,0x100 / ret
    const TWO: [u8; 16] =
        [0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0xc3, 0xcc, 0x48, 0x81, 0xec, 0x00, 0x01, 0x00, 0x00, 0xc3];

    fn patch(at: u64) -> Patch {
        let from = usize::try_from(at - T).unwrap();
        let survey = Survey::of(&Code::new(at, &TWO[from..]), &Context::default()).unwrap();
        let options = Options { shapes: SHAPES, ..Options::default() };
        let slot = Slot { address: 0x8000, capacity: 64 };
        *Plan::with_options(&survey, slot, 0x9000, options).unwrap().patch()
    }

    fn attach(at: u64) -> Change {
        Change { patch: patch(at), direction: Direction::Attach }
    }

    fn detach(at: u64) -> Change {
        Change { patch: patch(at), direction: Direction::Detach }
    }

    #[test]
    fn a_free_jump_is_written_behind_a_quiesce() {
        let machine = Machine::new(T, &TWO);
        let mut text = machine.open_text(&[]).unwrap();
        live(&machine, &mut text, &[attach(T)]).unwrap();
        assert_eq!(
            machine.log(),
            vec![
                "lock_text",
                "write 1000 cc",
                "sync_cores",
                "quiesce",
                "write 1001 fb7f0000",
                "sync_cores",
                "write 1000 e9",
                "sync_cores",
                "unlock_text"
            ]
        );
        assert_eq!(machine.memory()[..5], [0xe9, 0xfb, 0x7f, 0, 0]);
        assert_eq!(machine.memory()[5..], TWO[5..]);
    }

    #[test]
    fn a_whole_instruction_and_every_detach_need_no_quiesce() {
        let machine = Machine::new(T, &TWO);
        let mut text = machine.open_text(&[]).unwrap();
        live(&machine, &mut text, &[attach(T + 8)]).unwrap();
        assert!(!machine.log().contains(&"quiesce".into()));
        live(&machine, &mut text, &[attach(T)]).unwrap();
        let before = machine.log().len();
        live(&machine, &mut text, &[detach(T), detach(T + 8)]).unwrap();
        assert!(!machine.log()[before..].contains(&"quiesce".into()));
        assert_eq!(machine.memory(), TWO);
    }

    #[test]
    fn two_changes_share_their_syncs() {
        let machine = Machine::new(T, &TWO);
        let mut text = machine.open_text(&[]).unwrap();
        live(&machine, &mut text, &[attach(T), attach(T + 8)]).unwrap();
        assert_eq!(machine.log().iter().filter(|line| *line == "sync_cores").count(), 3);
        assert_eq!(machine.log().iter().filter(|line| *line == "quiesce").count(), 1);
    }

    #[test]
    fn a_changed_byte_is_found_before_the_first_write() {
        for at in 0..6 {
            let machine = Machine::new(T, &TWO);
            machine.poke(T + at, 0x90);
            let mut text = machine.open_text(&[]).unwrap();
            let expected = TWO[usize::try_from(at).unwrap()];
            let changed = Error::Changed { address: T + at, expected, found: 0x90 };
            let error = live(&machine, &mut text, &[attach(T + 8), attach(T)]).unwrap_err();
            assert_eq!((error.index, error.error, error.written), (1, changed, false));
            let error = rendezvous(&machine, &mut text, &[attach(T)], &[]).unwrap_err();
            assert_eq!((error.error, error.written), (changed, false));
            assert!(!machine.log().iter().any(|line| line.starts_with("write")));
        }
    }

    #[test]
    fn a_failed_write_is_taken_back() {
        for writes in 0..6 {
            let machine = Machine::new(T, &TWO);
            machine.fail_after(writes);
            let mut text = Healing { text: machine.open_text(&[]).unwrap(), machine: &machine };
            let host = HealingHost(&machine);
            let error = live(&host, &mut text, &[attach(T), attach(T + 8)]).unwrap_err();
            assert_eq!((error.error, error.written), (Error::Host(5), true));
            assert_eq!(machine.memory(), TWO, "after {writes} writes");
            machine.fail_after(writes.min(1));
            // SAFETY: the simulated machine runs nothing.
            let alone = unsafe { Alone::promise() };
            local(&host, &mut text, &[attach(T), attach(T + 8)], &alone).unwrap_err();
            assert_eq!(machine.memory(), TWO, "after {writes} writes");
        }
    }

    #[test]
    fn a_rendezvous_writes_all_or_waits() {
        let machine = Machine::new(T, &TWO);
        let mut text = machine.open_text(&[]).unwrap();
        machine.park_thread_at(T + 1);
        let error = rendezvous(&machine, &mut text, &[attach(T)], &[T + 1, T + 4]).unwrap_err();
        assert_eq!((error.error, error.written), (Error::ThreadInWindow { address: T + 1 }, false));
        machine.park_thread_at(T + 3);
        rendezvous(&machine, &mut text, &[attach(T)], &[T + 1, T + 4]).unwrap();
        assert_eq!(
            machine.log(),
            vec!["park", "write 1000 cc", "write 1001 fb7f0000", "write 1000 e9", "release"]
        );
    }

    /// A text whose writes work again after one has failed, as a full disk or a passing fault would.
    struct Healing<'a> {
        text: SimulatedText,
        machine: &'a Machine,
    }

    impl Text for Healing<'_> {
        fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
            self.text.write(address, bytes).inspect_err(|_| self.machine.heal())
        }
    }

    struct HealingHost<'a>(&'a Machine);

    impl<'a> Host for HealingHost<'a> {
        type Text = Healing<'a>;

        fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
            self.0.read(address, bytes)
        }

        fn function(&self, target: u64) -> Result<Function, Error> {
            self.0.function(target)
        }

        fn executable_memory(&self, len: usize, reach: Reach) -> Option<Span> {
            self.0.executable_memory(len, reach)
        }

        fn open_text(&self, spans: &[Span]) -> Result<Healing<'a>, Error> {
            Ok(Healing { text: self.0.open_text(spans)?, machine: self.0 })
        }

        fn sync_cores(&self) {
            self.0.sync_cores();
        }
    }

    impl BreakpointHook for HealingHost<'_> {
        fn breakpoints(&self) -> &'static Breakpoints {
            self.0.breakpoints()
        }
    }

    // SAFETY: as for the machine.
    unsafe impl Quiesce for HealingHost<'_> {
        fn quiesce(&self) {
            self.0.quiesce();
        }
    }
}
