//! Questions on a terminal. Where there is none, or `--yes` was said, defaults are taken, and what has none is an error
//! that names its flag.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use anyhow::{Result, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use secrecy::SecretString;
use zeroize::Zeroizing;

/// The longest answer, in bytes.
const MOST: usize = 4096;

/// Whoever answers, if somebody does.
pub(super) struct Person {
    is_there: bool,
    /// The flags that were given: what they say is not asked.
    given: BTreeSet<&'static str>,
}

impl Person {
    /// Who sits at standard input; nobody with `yes`.
    pub(super) fn new(yes: bool, given: BTreeSet<&'static str>) -> Self {
        Self { is_there: !yes && io::stdin().is_terminal(), given }
    }

    /// What these flags said is asked again, as a default.
    pub(super) fn ask_again(&mut self, flags: &[&str]) {
        self.given.retain(|flag| !flags.contains(flag));
    }

    fn is_asked(&self, flag: &str) -> bool {
        self.is_there && !self.given.contains(flag)
    }

    /// Whether anybody can be asked.
    pub(super) const fn is_there(&self) -> bool {
        self.is_there
    }

    /// What the next questions are about.
    pub(super) fn heading(&mut self, text: &str) {
        if self.is_there {
            let _ = writeln!(io::stdout().lock(), "\n{text}");
        }
    }

    /// Asks for what must not be empty; what stands in `answer` is the default.
    pub(super) fn ask(&mut self, flag: &str, question: &str, answer: &mut String) -> Result<()> {
        self.ask_checked(flag, question, answer, |_| Ok(()))
    }

    /// The same, with a check of one's own.
    pub(super) fn ask_checked(
        &mut self,
        flag: &str,
        question: &str,
        answer: &mut String,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Result<()> {
        if !self.is_asked(flag) {
            return match check(answer) {
                _ if answer.is_empty() => bail!("{flag} is missing; name it, or run `weir init` on a terminal"),
                Ok(()) => Ok(()),
                Err(fault) => bail!("{flag}: {fault}"),
            };
        }
        loop {
            let given = prompt(question, answer)?;
            let given = if given.is_empty() { answer.clone() } else { given };
            match check(&given) {
                _ if given.is_empty() => say("this has no default"),
                Ok(()) => {
                    *answer = given;
                    return Ok(());
                }
                Err(fault) => say(&fault),
            }
        }
    }

    /// Asks for what may be empty: `-` makes it so.
    pub(super) fn ask_empty(&mut self, flag: &str, question: &str, answer: &mut String) -> Result<()> {
        if self.is_asked(flag) {
            let given = prompt(question, answer)?;
            match given.as_str() {
                "" => {}
                "-" => answer.clear(),
                _ => *answer = given,
            }
        }
        Ok(())
    }

    /// Asks for a file's path, which may be empty.
    pub(super) fn ask_path(&mut self, flag: &str, question: &str, answer: &mut PathBuf) -> Result<()> {
        let mut text = answer.to_string_lossy().into_owned();
        if answer.to_str().is_none() {
            bail!("{flag} is not UTF-8, which the configuration is");
        }
        if self.is_asked(flag) {
            self.ask_empty(flag, question, &mut text)?;
            *answer = if text.is_empty() { PathBuf::new() } else { std::path::absolute(text)? };
        }
        Ok(())
    }

    /// Asks for a secret, which is not shown while it is typed; `None` when nothing is typed.
    pub(super) fn ask_secret(&mut self, question: &str) -> Result<Option<SecretString>> {
        // Before the question: whoever is quick is not shown either.
        let hidden = Hidden::new()?;
        print!("{question} (not shown; empty: made by hand later): ");
        io::stdout().flush()?;
        let typed = read_hidden();
        drop(hidden);
        say("");
        let typed = typed?;
        Ok((!typed.is_empty()).then(|| SecretString::from(typed.as_str())))
    }

    /// A question that is answered by yes or no.
    pub(super) fn agrees(&mut self, question: &str, default: bool) -> Result<bool> {
        if !self.is_there {
            return Ok(default);
        }
        loop {
            let given = prompt(question, if default { "yes" } else { "no" })?;
            match given.to_ascii_lowercase().as_str() {
                "" => return Ok(default),
                "y" | "yes" => return Ok(true),
                "n" | "no" => return Ok(false),
                _ => say("yes or no?"),
            }
        }
    }
}

fn say(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// Asks once; the line that comes, without blanks around it.
fn prompt(question: &str, default: &str) -> Result<String> {
    let mut out = io::stdout().lock();
    if default.is_empty() {
        write!(out, "{question}: ")?;
    } else {
        write!(out, "{question} [{}]: ", crate::show::line(default, MOST))?;
    }
    out.flush()?;
    let mut bytes = Vec::new();
    // By bytes, past the standard library's buffer: a secret may be what comes next.
    while let Some(byte) = read_byte()? {
        if byte == b'\n' {
            let text = String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("the answer is not UTF-8"))?;
            return Ok(text.trim().to_owned());
        }
        bytes.push(byte);
        if bytes.len() > MOST {
            bail!("the answer is longer than {MOST} bytes; nothing was written");
        }
    }
    say("");
    bail!("the input ended before all was answered; nothing was written")
}

fn read_byte() -> io::Result<Option<u8>> {
    let mut byte = [0];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(byte[0])),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The terminal while nothing that is typed is shown. Keys that would end the program come as bytes, or it would leave the
/// terminal so.
struct Hidden(Termios);

impl Hidden {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &hidden)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.0);
    }
}

fn read_hidden() -> Result<Zeroizing<String>> {
    // Room for all of it at once: one that grows leaves copies behind.
    let mut typed = Zeroizing::new(Vec::with_capacity(MOST));
    while let Some(byte) = read_byte()? {
        match byte {
            b'\n' | b'\r' => {
                let text = std::str::from_utf8(&typed).map_err(|_| anyhow::anyhow!("the password is not UTF-8"))?;
                return Ok(Zeroizing::new(text.to_owned()));
            }
            3 => bail!("interrupted; nothing was written"),
            4 => break,
            8 | 127 => drop(typed.pop()),
            byte if typed.len() < MOST => typed.push(byte),
            _ => bail!("the password is longer than {MOST} bytes; nothing was written"),
        }
    }
    bail!("the input ended before all was answered; nothing was written")
}
