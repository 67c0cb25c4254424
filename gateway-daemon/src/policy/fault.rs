//! What is wrong with a folder of policies, told so that it can be mended: where, what, and how.

use std::{fmt, io, sync::Arc};

use super::{
    load::{
        MAX_BYTES, MAX_DEPTH, MAX_DESCRIPTION_BYTES, MAX_FILE_BYTES, MAX_FILES, MAX_ID_BYTES, MAX_IFS, MAX_OPERATORS,
        MAX_POLICIES, MAX_POLICY_BYTES,
    },
    names::NameFault,
    source::Place,
};

/// One fault or one warning.
#[derive(Debug)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// Where, when it lies in a file that was read.
    pub place: Option<Place>,
}

/// Every fault of a folder, in the order of files and lines. None of its policies is in force.
#[derive(Debug, thiserror::Error)]
#[error("{}", render_all("error", .faults))]
pub struct LoadErrors {
    /// What keeps the policies from loading, at least one.
    pub faults: Vec<Fault>,
    /// What would have been warned of besides.
    pub warnings: Vec<Fault>,
}

/// The kinds of faults. Those from [`FaultKind::NeverMatches`] on are warnings.
#[derive(Debug, thiserror::Error)]
pub enum FaultKind {
    /// The folder or a file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread could be started to read them on.
    #[error("cannot start a thread to read policies on: {source}")]
    Thread {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A `*.cedar` that is a link, a folder, a pipe or a device.
    #[error("`{path}` is {found}, not a regular file")]
    Odd {
        /// Which.
        path: String,
        /// What it is.
        found: &'static str,
    },
    /// The folder, a file or something above may be changed by others than its owner.
    #[error("`{path}` {found}")]
    Unguarded {
        /// Which.
        path: String,
        /// What is wrong with it.
        found: String,
    },
    /// A limit.
    #[error("{what} has more than {limit} {unit}")]
    Limit {
        /// What is too large.
        what: String,
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The file is not UTF-8.
    #[error("`{path}` is not UTF-8")]
    NotUtf8 {
        /// Which.
        path: String,
    },
    /// Cedar cannot read it.
    #[error("{message}")]
    Syntax {
        /// Cedar's words.
        message: String,
        /// Cedar's help.
        help: Option<String>,
    },
    /// It doesn't fit the schema.
    #[error("{message}")]
    Invalid {
        /// Cedar's words.
        message: String,
        /// Cedar's help.
        help: Option<String>,
    },
    /// A template.
    #[error("a template is not a policy")]
    Template,
    /// No `@id`.
    #[error("the policy has no `@id`")]
    MissingId,
    /// An `@id` that cannot be one.
    #[error("`{id}` cannot be an `@id`")]
    BadId {
        /// As written, printable.
        id: String,
    },
    /// Two policies with the same `@id`.
    #[error("the id `{id}` is taken by the policy at {first}")]
    DuplicateId {
        /// The id.
        id: Arc<str>,
        /// File and line of the first.
        first: String,
    },
    /// No `@description`.
    #[error("the policy has no `@description`")]
    MissingDescription,
    /// A `@description` that is empty, too long or holds control characters.
    #[error("the `@description` is empty, longer than {MAX_DESCRIPTION_BYTES} bytes, or holds control characters")]
    BadDescription,
    /// `@approval`, which would ask for a person's consent: nothing here does.
    #[error("`@approval` is not supported by this version, so this policy would allow what should be held")]
    Approval,
    /// An annotation that Weir doesn't know.
    #[error("the annotation `@{name}` is not known")]
    UnknownAnnotation {
        /// Its name.
        name: String,
    },
    /// An entity that cannot exist.
    #[error("nothing can be named `{name}`: {fault}")]
    Name {
        /// As written.
        name: String,
        /// What is wrong.
        fault: NameFault,
    },
    /// Reads `context.columns` without `context.allColumns`, or the other way round.
    #[error("the policy reads `context.{read}` and not `context.{unread}`")]
    HalfColumns {
        /// What it reads.
        read: &'static str,
        /// What it doesn't.
        unread: &'static str,
    },
    /// Evaluating it fails, and a policy that fails refuses every statement that it is asked for.
    #[error("the policy fails when it is evaluated: {message}")]
    Fails {
        /// Cedar's words.
        message: String,
    },
    /// Warning: no request can satisfy it.
    #[error("the policy `{id}` can never match")]
    NeverMatches {
        /// Its id.
        id: Arc<str>,
    },
    /// Warning: an agent, issuer or connection that the configuration doesn't know.
    #[error("the policy `{id}` names the {what} `{name}`, which the configuration doesn't know")]
    Unconfigured {
        /// The policy's id.
        id: Arc<str>,
        /// `agent`, `issuer` or `connection`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Warning: characters that deceive a reader.
    #[error("{message}")]
    Deceiving {
        /// Cedar's words.
        message: String,
    },
    /// Warning: a file or folder that looks like policies and isn't read.
    #[error("`{path}` is not read")]
    Ignored {
        /// Which.
        path: String,
    },
    /// Warning: there is no policy at all.
    #[error("there is no policy: every statement is refused")]
    Empty,
}

impl FaultKind {
    /// How to mend it.
    pub fn mend(&self) -> String {
        match self {
            Self::Read { .. } => "policies are files `*.cedar` in one folder, readable by the daemon".into(),
            Self::Thread { .. } => {
                "the machine or the unit's limits (TasksMax, memory) leave no room: try again".into()
            }
            Self::Odd { .. } => "put the file itself there; links are not followed".into(),
            Self::Unguarded { .. } => "whoever can write there can permit anything: chown root, chmod go-w".into(),
            Self::Limit { .. } => format!(
                "limits: {MAX_FILES} files, {MAX_FILE_BYTES} bytes a file, {MAX_BYTES} bytes, {MAX_POLICIES} policies; \
                 of one policy {MAX_POLICY_BYTES} bytes, {MAX_DEPTH} brackets deep, {MAX_IFS} `if`s, {MAX_OPERATORS} operators"
            ),
            Self::NotUtf8 { .. } => "save it as UTF-8".into(),
            Self::Syntax { help, .. } => {
                help.clone().unwrap_or_else(|| "see docs.cedarpolicy.com, \"Policy syntax\"".into())
            }
            Self::Invalid { help, .. } => {
                help.clone().unwrap_or_else(|| "the schema's words: `weir policy schema`".into())
            }
            Self::Template => "write the entity where the slot stands, once for each policy".into(),
            Self::MissingId => "name it: @id(\"analysts-read\")".into(),
            Self::BadId { .. } => format!("letters, digits, `-`, `_`, `.`, at most {MAX_ID_BYTES} of them"),
            Self::DuplicateId { .. } => "every id is on the record: give each policy its own".into(),
            Self::MissingDescription | Self::BadDescription => {
                "say in a sentence what it is for; who is refused by it reads it: @description(\"…\")".into()
            }
            Self::Approval => "remove the policy until approvals are there; without it the statement is refused".into(),
            Self::UnknownAnnotation { .. } => {
                "annotations are `@id` and `@description`; put notes into comments".into()
            }
            Self::Name { .. } => "how entities are named: `weir policy schema`".into(),
            Self::HalfColumns { .. } => {
                "with `SELECT *` the set `columns` is empty and `allColumns` is true: say what is to happen then".into()
            }
            Self::Fails { .. } => "an evaluation that fails refuses; write the condition so that it cannot".into(),
            Self::NeverMatches { .. } => "it has no effect: mend its scope and conditions, or remove it".into(),
            Self::Unconfigured { .. } => "it has no effect while that is so: mind the spelling".into(),
            Self::Deceiving { .. } => "write it with letters of one script, without invisible characters".into(),
            Self::Ignored { .. } => {
                "only regular files whose names end in `.cedar`, in the folder itself, are read".into()
            }
            Self::Empty => "start from the examples in policies/".into(),
        }
    }
}

impl Fault {
    pub(super) const fn new(kind: FaultKind, place: Option<Place>) -> Self {
        Self { kind, place }
    }

    /// The fault as it is shown on a terminal, with `word` (`error`, `warning`) in front.
    pub fn render(&self, word: &str) -> String {
        format!("{word}: {self}")
    }

    /// What faults are sorted by.
    pub(super) fn order(&self) -> (Option<Arc<str>>, usize, usize) {
        self.place.as_ref().map_or((None, 0, 0), |place| (Some(Arc::clone(&place.file)), place.line, place.column))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", super::source::printable(&self.kind.to_string()))?;
        if let Some(place) = &self.place {
            writeln!(f, "{place}")?;
        }
        write!(f, "  = help: {}", self.kind.mend())
    }
}

/// Several faults, with an empty line between.
pub(super) fn render_all(word: &str, faults: &[Fault]) -> String {
    faults.iter().map(|fault| fault.render(word)).collect::<Vec<_>>().join("\n\n")
}
