//! Runs the scenarios, each in a process of its own, and tells how they ended.
//!
//! A scenario's process tells by lines on its standard output: `@ WHAT` what it is about to do, which is printed if it does
//! not get further; `FAIL WHY`; `ok WHAT`.

use super::footprint::Footprint;
use super::system;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{env, io, panic, process, thread};

/// Something that a process does with detours, and the checks that go with it.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Its share of the time.
    pub(crate) weight: u32,
    /// Whether it runs when it is not asked for by its name.
    pub(crate) usual: bool,
    pub(crate) run: fn(&Clock) -> String,
}

/// How long a scenario may run.
pub(crate) struct Clock {
    begin: Instant,
    length: Duration,
}

impl Clock {
    fn new(length: Duration) -> Self {
        Self { begin: Instant::now(), length }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.begin.elapsed() >= self.length
    }

    #[cfg(not(windows))]
    pub(crate) fn length(&self) -> Duration {
        self.length
    }

    /// A part of the time, which begins now.
    pub(crate) fn part(&self, of: u32) -> Self {
        Self::new(self.length / of)
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }
}

/// How long all of them take if nothing else is said.
const USUAL_SECONDS: f64 = 40.0;
/// What a scenario has beyond its own time, in seconds, before it counts as one that hangs: some do a fixed number of things, whatever their time,
/// and the machine may have much else to do.
const PATIENCE: f64 = 300.0;
const MARK: &str = "--inside";

struct Arguments {
    seconds: f64,
    list: bool,
    inside: Option<String>,
    words: Vec<String>,
}

fn arguments() -> Arguments {
    let from_environment = env::var("KDETOUR_STRESS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let mut arguments = Arguments {
        seconds: from_environment.unwrap_or(USUAL_SECONDS),
        list: false,
        inside: None,
        words: Vec::new(),
    };
    let mut given = env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--seconds" => {
                let seconds = given.next().and_then(|seconds| seconds.parse().ok());
                arguments.seconds = seconds.expect("--seconds needs a number");
            }
            "--list" => arguments.list = true,
            MARK => arguments.inside = given.next(),
            // What the usual test program would be given.
            "--test-threads" | "--format" | "--color" | "--skip" | "-Z" => drop(given.next()),
            flag if flag.starts_with('-') => {}
            word => arguments.words.push(word.to_owned()),
        }
    }
    arguments
}

pub(crate) fn main(scenarios: &[Scenario]) -> ExitCode {
    let arguments = arguments();
    if let Some(name) = &arguments.inside {
        let scenario = scenarios.iter().find(|scenario| scenario.name == name).expect("no such scenario");
        inside(scenario, &Clock::new(Duration::from_secs_f64(arguments.seconds)));
    }
    let wanted = |scenario: &&Scenario| match &arguments.words[..] {
        [] => scenario.usual,
        words => words.iter().any(|word| scenario.name.contains(word.as_str())),
    };
    let chosen: Vec<&Scenario> = scenarios.iter().filter(wanted).collect();
    if arguments.list {
        for scenario in chosen {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    let weights: u32 = chosen.iter().map(|scenario| scenario.weight).sum();
    let mut failed = Vec::new();
    for scenario in &chosen {
        let seconds = arguments.seconds * f64::from(scenario.weight) / f64::from(weights);
        match outside(scenario.name, seconds) {
            Ok(report) => println!("ok {}: {report}", scenario.name),
            Err(why) => {
                println!("FAIL {}: {why}", scenario.name);
                failed.push(scenario.name);
            }
        }
    }
    println!("{} scenarios, {} failed {}", chosen.len(), failed.len(), failed.join(" "));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a scenario in this process, which then ends.
fn inside(scenario: &Scenario, clock: &Clock) -> ! {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        usual(panicked);
        fail(&panicked.to_string().replace('\n', " "));
    }));
    let before = Footprint::take();
    let report = (scenario.run)(clock);
    tell("cleaning up");
    let after = before.compare();
    say(&format!("ok {report}, {:.1} s; {after}", clock.seconds()));
    process::exit(0)
}

/// Tells what comes next, for whoever wants to know how far it came.
pub(crate) fn tell(what: &str) {
    say(&format!("@ {what}"));
}

/// Ends the scenario.
pub(crate) fn fail(why: &str) -> ! {
    say(&format!("FAIL {why}"));
    system::end_now()
}

fn say(line: &str) {
    // One write: lines of different threads and processes stay whole.
    let _ = io::stdout().lock().write_all(format!("{line}\n").as_bytes());
    let _ = io::stdout().flush();
}

/// Runs a scenario in a process of its own.
fn outside(name: &str, seconds: f64) -> Result<String, String> {
    let mut command = Command::new(env::current_exe().map_err(|error| error.to_string())?);
    command.args([MARK, name, "--seconds", &seconds.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    system::apart(&mut command);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let lines = lines_of(&mut child);
    let limit = Instant::now() + Duration::from_secs_f64(PATIENCE + 3.0 * seconds);
    let (mut last, mut verdict, mut hung) = (String::new(), None, None);
    loop {
        match lines.recv_timeout(limit.saturating_duration_since(Instant::now())) {
            Ok(line) => match line.split_once(' ') {
                Some(("@", step)) => last = step.to_owned(),
                Some(("ok", report)) => verdict = verdict.or(Some(Ok(report.to_owned()))),
                Some(("FAIL", why)) => verdict = verdict.or(Some(Err(why.to_owned()))),
                _ => println!("    {line}"),
            },
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if verdict.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {
                hung = Some(format!("hangs at: {last}; {}", system::threads_of(child.id())));
                break;
            }
        }
    }
    if hung.is_some() || verdict.is_some() {
        // Give it time to end by itself, unless it never will.
        let patience = Instant::now() + Duration::from_secs(5);
        while hung.is_none() && Instant::now() < patience && matches!(child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(1));
        }
        system::end(&mut child);
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    match (hung, verdict) {
        (Some(why), _) => Err(why),
        (None, Some(Ok(report))) if status.success() => Ok(report),
        (None, Some(Err(why))) => Err(format!("{why} (at: {last})")),
        (None, _) => Err(format!("{} at: {last}", system::ended(status))),
    }
}

fn lines_of(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}
