//! A guest's screen and keyboard. The script asks for what the outside has to do by a line `host: COMMAND`, and reads one line
//! of answer from the second serial line: `ok ...` or `no: why` (`host` in `lib.sh`). Commands with ` , ` between them are carried out
//! one after the other, and answered at the end: a guest may stand still meanwhile.
//!
//! ```text
//! host: shot NAME                            takes the screen as it is; saved as NAME.png
//! host: unlike NAME OTHER                    takes it when it has come to rest and is unlike OTHER
//! host: wait MILLISECONDS
//! host: keys ctrl-alt-k                      presses these keys, and releases them
//! host: press ctrl / host: release ctrl      one of the two
//! host: move X Y                             moves the mouse, to the right and down
//! host: hold left / host: let left           presses a button of it, and releases it
//! host: same NAME OTHER                      whether two screens are alike, pixel for pixel
//! host: panel NAME X Y WIDTH HEIGHT ROWS     whether cells of that size, from a pixel on, hold the ROWS lines that follow
//! ```

use super::picture::Picture;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// QEMU answers at once; a screen takes a moment.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at a screen that is to come to rest.
const PAUSE: Duration = Duration::from_millis(300);

/// What shows the guest's screen, and who starts its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Display {
    /// A VGA card with its BIOS: text, and VESA modes (`vga=0x344`).
    Vga,
    /// The same card with UEFI: a linear framebuffer.
    Efi,
}

impl Display {
    /// QEMU's arguments.
    pub(super) fn arguments(self, socket: &Path) -> Vec<String> {
        let mut arguments = vec!["-vga".to_owned(), "std".to_owned()];
        arguments.push("-qmp".to_owned());
        arguments.push(format!("unix:{},server=on,wait=off", socket.display()));
        if self == Self::Efi {
            arguments.push("-drive".to_owned());
            arguments.push(format!("if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}"));
        }
        arguments
    }
}

/// Debian's package `ovmf`.
pub(crate) const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE.fd";

/// The other end of the guest's screen and keys.
pub(super) struct Screen {
    socket: PathBuf,
    pictures: PathBuf,
    connection: Option<BufReader<UnixStream>>,
    shots: BTreeMap<String, Picture>,
    panel: Option<Panel>,
}

/// A panel whose lines are still to come.
struct Panel {
    shot: String,
    place: [usize; 4],
    rows: usize,
    lines: Vec<String>,
}

impl Screen {
    /// For the QEMU that listens on `socket`; pictures go to the folder `pictures`.
    pub(super) fn new(socket: PathBuf, pictures: PathBuf) -> Self {
        Self { socket, pictures, connection: None, shots: BTreeMap::new(), panel: None }
    }

    /// Takes a line of the script: `None` if it is not for the host, else what to answer, if anything yet.
    pub(super) fn take(&mut self, line: &str) -> Option<Option<String>> {
        let answer = if let Some(mut panel) = self.panel.take() {
            panel.lines.push(line.to_owned());
            if panel.lines.len() < panel.rows {
                self.panel = Some(panel);
                return Some(None);
            }
            self.compare(&panel)
        } else {
            let command = line.strip_prefix("host: ")?;
            let answer = command
                .split(" , ")
                .try_fold(String::new(), |_, one| self.command(one).with_context(|| one.to_owned()));
            if self.panel.is_some() {
                return Some(None);
            }
            answer
        };
        Some(Some(match answer {
            Ok(text) => format!("ok {text}"),
            Err(error) => format!("no: {}", format!("{error:#}").replace('\n', " ")),
        }))
    }

    fn command(&mut self, command: &str) -> Result<String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        match *words.as_slice() {
            ["shot", name] => self.shot(name),
            ["unlike", name, other] => self.unlike(name, other),
            ["wait", time] => {
                let time = time.parse().with_context(|| format!("{time} is no number"))?;
                std::thread::sleep(Duration::from_millis(time));
                Ok(String::new())
            }
            ["keys", keys] => {
                let keys: Vec<Value> = keys.split('-').map(key).collect();
                self.execute("send-key", &json!({ "keys": keys, "hold-time": 60 }))?;
                Ok(String::new())
            }
            [what @ ("press" | "release"), name] => {
                let event = json!({ "type": "key", "data": { "down": what == "press", "key": key(name) } });
                self.execute("input-send-event", &json!({ "events": [event] }))?;
                Ok(String::new())
            }
            ["move", x, y] => {
                let events = [("x", x), ("y", y)].map(|(axis, text)| {
                    let value: i64 = text.parse().with_context(|| format!("{text} is no number"))?;
                    Ok(json!({ "type": "rel", "data": { "axis": axis, "value": value } }))
                });
                let events = events.into_iter().collect::<Result<Vec<Value>>>()?;
                self.execute("input-send-event", &json!({ "events": events }))?;
                Ok(String::new())
            }
            [what @ ("hold" | "let"), button] => {
                let event = json!({ "type": "btn", "data": { "down": what == "hold", "button": button } });
                self.execute("input-send-event", &json!({ "events": [event] }))?;
                Ok(String::new())
            }
            ["same", one, other] => {
                let (one, other) = (self.of(one)?, self.of(other)?);
                match one.differs(other) {
                    None => Ok("alike".to_owned()),
                    Some(what) => bail!(what),
                }
            }
            ["panel", shot, x, y, width, height, rows] => {
                let mut place = [0; 4];
                for (to, text) in place.iter_mut().zip([x, y, width, height]) {
                    *to = text.parse().with_context(|| format!("{text} is no number"))?;
                }
                let rows = rows.parse().with_context(|| format!("{rows} is no number"))?;
                self.of(shot)?;
                self.panel = Some(Panel { shot: shot.to_owned(), place, rows, lines: Vec::new() });
                Ok(String::new())
            }
            _ => bail!("the host knows no `{command}`"),
        }
    }

    fn of(&self, shot: &str) -> Result<&Picture> {
        self.shots.get(shot).with_context(|| format!("no shot {shot} was taken"))
    }

    fn compare(&self, panel: &Panel) -> Result<String> {
        let [x, y, width, height] = panel.place;
        let inked = self.of(&panel.shot)?.check_text(&panel.lines, (x, y), (width, height))?;
        Ok(format!("{inked} characters"))
    }

    fn shot(&mut self, name: &str) -> Result<String> {
        fs::create_dir_all(&self.pictures)
            .with_context(|| format!("cannot create {}", self.pictures.display()))?;
        let raw = self.pictures.join(format!("{name}.ppm"));
        self.execute("screendump", &json!({ "filename": raw.display().to_string() }))?;
        let bytes = fs::read(&raw).with_context(|| format!("cannot read {}", raw.display()))?;
        // The next one overwrites it.
        fs::remove_file(&raw).ok();
        let picture = Picture::from_ppm(&bytes).context("QEMU's picture")?;
        picture.save(&self.pictures.join(format!("{name}.png")))?;
        let answer = format!("{}x{}", picture.width(), picture.height());
        self.shots.insert(name.to_owned(), picture);
        Ok(answer)
    }

    fn unlike(&mut self, name: &str, other: &str) -> Result<String> {
        let start = Instant::now();
        let mut before = None;
        while start.elapsed() < PATIENCE {
            let answer = self.shot(name)?;
            let now = self.of(name)?.clone();
            if before.as_ref() == Some(&now) && now != *self.of(other)? {
                return Ok(answer);
            }
            before = Some(now);
            std::thread::sleep(PAUSE);
        }
        bail!(
            "the screen still looks like {other}, or does not come to rest, after {} s",
            PATIENCE.as_secs()
        );
    }

    /// One command of QMP; events in between are of no interest.
    fn execute(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let stream = UnixStream::connect(&self.socket)
                    .with_context(|| format!("QEMU does not listen at {}", self.socket.display()))?;
                stream.set_read_timeout(Some(PATIENCE)).context("no time-out for QEMU")?;
                let mut connection = BufReader::new(stream);
                ask(&mut connection, &json!({ "execute": "qmp_capabilities" }))?;
                connection
            }
        };
        ask(&mut connection, &json!({ "execute": command, "arguments": arguments }))?;
        self.connection = Some(connection);
        Ok(())
    }
}

/// A key by QEMU's name of it.
fn key(name: &str) -> Value {
    json!({ "type": "qcode", "data": name })
}

fn ask(connection: &mut BufReader<UnixStream>, what: &Value) -> Result<()> {
    writeln!(connection.get_mut(), "{what}").context("QEMU does not listen any more")?;
    let mut line = String::new();
    loop {
        line.clear();
        if connection.read_line(&mut line).context("QEMU does not answer")? == 0 {
            bail!("QEMU has gone");
        }
        let said: Value = serde_json::from_str(&line).with_context(|| format!("QEMU said {line}"))?;
        if let Some(error) = said.get("error") {
            bail!("QEMU refused {what}: {error}");
        }
        if said.get("return").is_some() {
            return Ok(());
        }
    }
}
