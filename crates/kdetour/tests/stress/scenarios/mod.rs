//! The scenarios.

mod births;
mod chain;
mod drain;
mod toggle;
#[cfg(windows)]
mod windows;

#[cfg(not(windows))]
mod blocked;
#[cfg(not(windows))]
mod children;
#[cfg(not(windows))]
mod debugger;
#[cfg(not(windows))]
mod exceptions;
#[cfg(not(windows))]
mod foreign;
#[cfg(not(windows))]
mod halted;
#[cfg(not(windows))]
mod library;
#[cfg(not(windows))]
mod machinery;
#[cfg(not(windows))]
mod parked;
#[cfg(not(windows))]
mod pointers;
#[cfg(not(windows))]
mod signals;
#[cfg(not(windows))]
mod sleepers;
#[cfg(not(windows))]
mod undumpable;

use crate::support::runner::Scenario;

#[cfg(not(windows))]
pub(crate) const ALL: &[Scenario] = &[
    Scenario { name: "toggle-exchange", weight: 6, usual: true, run: toggle::exchange },
    Scenario { name: "toggle-live", weight: 4, usual: true, run: toggle::live },
    Scenario { name: "toggle-rendezvous", weight: 2, usual: true, run: toggle::rendezvous },
    Scenario { name: "toggle-methods", weight: 2, usual: true, run: toggle::methods },
    Scenario { name: "parked-everywhere", weight: 3, usual: true, run: parked::everywhere },
    Scenario { name: "parked-nested", weight: 3, usual: true, run: parked::nested },
    Scenario { name: "signal-storm", weight: 3, usual: true, run: signals::storm },
    Scenario { name: "signals-blocked", weight: 2, usual: true, run: blocked::blocked },
    Scenario { name: "sleepers", weight: 2, usual: true, run: sleepers::sleepers },
    Scenario { name: "committer-stopped", weight: 3, usual: true, run: halted::stopped },
    Scenario { name: "committer-killed", weight: 1, usual: true, run: halted::killed },
    Scenario { name: "births-threads", weight: 2, usual: true, run: births::threads },
    Scenario { name: "births-forks", weight: 2, usual: true, run: children::forks },
    Scenario { name: "births-spawns", weight: 2, usual: true, run: children::spawns },
    Scenario { name: "machinery", weight: 3, usual: true, run: machinery::machinery },
    Scenario { name: "chain-orders", weight: 3, usual: true, run: chain::orders_of_detach },
    Scenario { name: "chain-at-once", weight: 2, usual: true, run: chain::at_once },
    Scenario { name: "chain-nested", weight: 1, usual: true, run: chain::nested },
    Scenario { name: "drain-sleeping", weight: 1, usual: true, run: drain::sleeping_calls },
    Scenario { name: "drain-reuse", weight: 3, usual: true, run: drain::reuse },
    Scenario { name: "library-closed", weight: 1, usual: true, run: library::library },
    Scenario { name: "pointers", weight: 2, usual: true, run: pointers::pointers },
    Scenario { name: "undumpable", weight: 1, usual: true, run: undumpable::undumpable },
    Scenario { name: "foreign-hook", weight: 1, usual: true, run: foreign::foreign },
    // These need more than a compiler of C: gdb, perf, a compiler of C++.
    Scenario { name: "tools-gdb", weight: 2, usual: false, run: debugger::toggles },
    Scenario { name: "tools-gdb-names", weight: 1, usual: false, run: debugger::gdb_names },
    Scenario { name: "tools-perf-names", weight: 1, usual: false, run: debugger::perf_names },
    Scenario { name: "tools-exceptions", weight: 1, usual: false, run: exceptions::exceptions },
];

#[cfg(windows)]
pub(crate) const ALL: &[Scenario] = &[
    Scenario { name: "toggle-exchange", weight: 6, usual: true, run: toggle::exchange },
    Scenario { name: "toggle-live", weight: 4, usual: true, run: toggle::live },
    Scenario { name: "toggle-rendezvous", weight: 2, usual: true, run: toggle::rendezvous },
    Scenario { name: "toggle-methods", weight: 2, usual: true, run: toggle::methods },
    Scenario { name: "parked-everywhere", weight: 4, usual: true, run: windows::parked::everywhere },
    Scenario { name: "sleepers", weight: 2, usual: true, run: windows::sleepers::sleepers },
    Scenario { name: "committer-stopped", weight: 3, usual: true, run: windows::halted::stopped },
    Scenario { name: "births-threads", weight: 2, usual: true, run: births::threads },
    Scenario { name: "panics", weight: 2, usual: true, run: windows::panics::panics },
    Scenario { name: "chain-orders", weight: 3, usual: true, run: chain::orders_of_detach },
    Scenario { name: "chain-at-once", weight: 2, usual: true, run: chain::at_once },
    Scenario { name: "chain-nested", weight: 1, usual: true, run: chain::nested },
    Scenario { name: "drain-sleeping", weight: 1, usual: true, run: drain::sleeping_calls },
    Scenario { name: "drain-reuse", weight: 3, usual: true, run: drain::reuse },
    Scenario { name: "library-closed", weight: 1, usual: true, run: windows::library::library },
];
