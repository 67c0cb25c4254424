//! `weir policy check DIR`: whether a folder would load, as a terminal shows it.

use std::{fmt, path::Path};

use super::{
    PolicySet, PolicySetId,
    fault::{Fault, render_all},
    load::{Known, Loaded},
};

/// What came of a check. Shown by `Display`.
#[derive(Debug)]
pub struct Check {
    /// The set's id and size, when it would load.
    pub set: Option<(PolicySetId, usize)>,
    /// What keeps it from loading.
    pub faults: Vec<Fault>,
    /// What should be looked at.
    pub warnings: Vec<Fault>,
}

/// Reads and checks a folder; nothing comes into force.
pub fn check(dir: &Path, known: Option<&Known>) -> Check {
    match PolicySet::load(dir, known) {
        Ok(Loaded { set, warnings }) => Check { set: Some((set.id(), set.len())), faults: Vec::new(), warnings },
        Err(errors) => Check { set: None, faults: errors.faults, warnings: errors.warnings },
    }
}

impl Check {
    /// The exit status: 0 when the policies would load (warnings or not), 1 when they wouldn't.
    pub const fn exit_code(&self) -> u8 {
        match self.set {
            Some(_) => 0,
            None => 1,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (word, faults) in [("error", &self.faults), ("warning", &self.warnings)] {
            if !faults.is_empty() {
                writeln!(f, "{}\n", render_all(word, faults))?;
            }
        }
        let (errors, warnings) = (count(self.faults.len(), "error"), count(self.warnings.len(), "warning"));
        match self.set {
            Some((id, policies)) => {
                let policies = if policies == 1 { "1 policy".to_owned() } else { format!("{policies} policies") };
                writeln!(f, "{policies} would load, {warnings}\npolicy set {id}")
            }
            None => writeln!(f, "no policy would load: {errors}, {warnings}"),
        }
    }
}

fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
