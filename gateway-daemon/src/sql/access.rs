//! What a statement does, in the words that policies use: the seam between `sql` and `policy`.

use std::{collections::BTreeSet, fmt, sync::Arc};

/// An identifier as the server keeps it: folded, unquoted, at most 63 bytes.
pub type Name = Arc<str>;

/// One thing that a statement does to one object. A statement has at least one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Access {
    /// What is done.
    pub action: Action,
    /// To what.
    pub object: Object,
    /// Which columns of a relation it names.
    pub columns: Columns,
}

/// What an access is done to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// The connection's database itself: sessions, transactions, what has no smaller object.
    Database,
    /// A schema.
    Schema {
        /// Its name.
        schema: Name,
    },
    /// A table, view, materialized view, foreign table, sequence, index or composite type: what `pg_class` holds.
    Relation {
        /// The schema it was resolved to.
        schema: Name,
        /// Its name.
        name: Name,
    },
    /// A function, procedure or aggregate, by name (policies do not tell overloads apart).
    Function {
        /// The schema it was resolved to.
        schema: Name,
        /// Its name.
        name: Name,
    },
    /// A run-time setting, in lower case.
    Setting {
        /// Its name.
        name: Name,
    },
    /// Whatever else has a name: role, extension, server, language, publication…
    Other {
        /// The kind in PostgreSQL's words, lower case: `role`, `extension`, `foreign server`.
        kind: &'static str,
        /// Its name; empty where the statement gives none.
        name: Name,
    },
}

/// The columns that an access touches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Columns {
    /// The object has no columns, or none is touched (`count(*)`, DELETE without a condition).
    None,
    /// These, at least one. Names that could not be tied to one relation are counted for each candidate.
    Some(BTreeSet<Name>),
    /// Every column (`*`, whole rows), or it cannot be told which.
    All,
}

macro_rules! actions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal in $class:ident),* $(,)?) => {
        /// The leaves of the action hierarchy; each is in one [`Class`]. The names are those of the Cedar schema.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Action { $($(#[$doc])* $variant),* }

        impl Action {
            /// Every action, in the order of the schema.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The action's name in policies.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The class it belongs to.
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class),* }
            }
        }
    };
}

actions! {
    /// Reads rows or facts: SELECT, TABLE, VALUES over relations, COPY … TO STDOUT, and each relation that another statement reads.
    Select = "select" in Read,
    /// Asks for a plan (EXPLAIN without ANALYZE); what is explained has its own accesses besides.
    Explain = "explain" in Read,
    /// Adds rows.
    Insert = "insert" in Write,
    /// Changes rows; row locks (FOR UPDATE and kin) too.
    Update = "update" in Write,
    /// Removes rows.
    Delete = "delete" in Write,
    /// Empties a table.
    Truncate = "truncate" in Write,
    /// COPY … FROM STDIN.
    CopyFrom = "copyFrom" in Write,
    /// Calls a function that is not on the list of those without effects, or a procedure.
    Call = "call" in Write,
    /// Advances or sets a sequence (`nextval`, `setval`).
    UseSequence = "useSequence" in Write,
    /// LOCK TABLE.
    Lock = "lock" in Write,
    /// NOTIFY and `pg_notify`.
    Notify = "notify" in Write,
    /// VACUUM, ANALYZE, REINDEX, CLUSTER, CHECKPOINT, REFRESH MATERIALIZED VIEW.
    Maintain = "maintain" in Write,
    /// Makes a table, index, sequence, type or schema.
    Create = "create" in Ddl,
    /// Changes one, COMMENT included.
    Alter = "alter" in Ddl,
    /// Drops one.
    Drop = "drop" in Ddl,
    /// Makes, changes or drops a function, procedure, aggregate, operator, cast, or runs DO: it runs later or out of sight.
    Routine = "routine" in Code,
    /// … a trigger or an event trigger.
    Trigger = "trigger" in Code,
    /// … a rewrite rule.
    Rule = "rule" in Code,
    /// … a view or a materialized view.
    View = "view" in Code,
    /// … a default, a generated column, a check constraint or an index over an expression.
    Expression = "expression" in Code,
    /// … a row security policy.
    RowPolicy = "rowPolicy" in Code,
    /// … an extension or a language.
    Extension = "extension" in Code,
    /// Roles and passwords, SET ROLE, SET SESSION AUTHORIZATION; not the way back to the role that the session began with.
    Role = "role" in Admin,
    /// GRANT, REVOKE, default privileges.
    Grant = "grant" in Admin,
    /// Ownership, REASSIGN OWNED, security labels.
    Owner = "owner" in Admin,
    /// ALTER SYSTEM, settings of databases and roles, LOAD, databases and tablespaces.
    System = "system" in Admin,
    /// Servers, user mappings, foreign data wrappers, publications, subscriptions.
    Foreign = "foreign" in Admin,
    /// COPY with a file or a program, and functions that read files.
    Host = "host" in Admin,
    /// Transactions, savepoints, PREPARE, EXECUTE, DEALLOCATE, cursor control, DISCARD, UNLISTEN, RESET ROLE, giving back
    /// advisory locks, and the empty statement.
    Transaction = "transaction" in Session,
    /// SET, RESET, `set_config` of a setting on the list.
    Set = "set" in Session,
    /// SHOW of a setting on the list.
    Show = "show" in Session,
    /// LISTEN.
    Listen = "listen" in Session,
    /// What could not be placed: not parsed, a kind, node, function or setting that is on no list.
    Unknown = "unknown" in Unknown,
}

/// The classes of the action hierarchy: DESIGN's `read`, `write`, `ddl`, `code`, `admin`, `session`, `unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Reads.
    Read,
    /// Changes rows, or may.
    Write,
    /// Changes the shape of data.
    Ddl,
    /// Leaves code that runs later.
    Code,
    /// Changes who may do what, or reaches outside the database.
    Admin,
    /// Touches only the session.
    Session,
    /// Could not be placed.
    Unknown,
}

impl Class {
    /// The class's name in policies (an action group of the Cedar schema; `unknown` is a leaf without a group).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Ddl => "ddl",
            Self::Code => "code",
            Self::Admin => "admin",
            Self::Session => "session",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the request must be durable before it is forwarded, not only before its answer leaves.
    pub const fn durable_before_forward(self) -> bool {
        match self {
            Self::Read | Self::Session => false,
            Self::Write | Self::Ddl | Self::Code | Self::Admin | Self::Unknown => true,
        }
    }
}

impl fmt::Display for Object {
    /// `schema.name` without quoting; for people, never to be sent to a server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database => f.write_str("database"),
            Self::Schema { schema } => f.write_str(schema),
            Self::Relation { schema, name } | Self::Function { schema, name } => {
                write!(f, "{schema}.{name}")
            }
            Self::Setting { name } => f.write_str(name),
            Self::Other { kind, name } if name.is_empty() => f.write_str(kind),
            Self::Other { kind, name } => write!(f, "{kind} {name}"),
        }
    }
}
