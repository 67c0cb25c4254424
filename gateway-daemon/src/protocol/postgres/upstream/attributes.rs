//! Which of several servers is taken: libpq's `target_session_attrs`.

use std::{fmt, time::Duration};

use serde::Deserialize;

use super::{
    StartupParameters, Upstream,
    error::Failure,
    query::{RowLimits, simple_query_rows},
};

/// What a server must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionAttributes {
    /// Any that answers.
    #[default]
    Any,
    /// One whose sessions may write.
    ReadWrite,
    /// One whose sessions may not.
    ReadOnly,
    /// One that is no standby.
    Primary,
    /// A standby.
    Standby,
    /// A standby; any other if none can be reached.
    PreferStandby,
}

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerKind {
    /// A hot standby.
    pub standby: bool,
    /// Transactions are read only unless they ask to write.
    pub read_only: bool,
}

const LIMITS: RowLimits = RowLimits { rows: 2, bytes: 4096, deadline: Duration::from_secs(5) };

impl SessionAttributes {
    /// What to ask of the servers, the first wish first.
    pub const fn wishes(self) -> &'static [Self] {
        match self {
            Self::Any => &[Self::Any],
            Self::ReadWrite => &[Self::ReadWrite],
            Self::ReadOnly => &[Self::ReadOnly],
            Self::Primary => &[Self::Primary],
            Self::Standby => &[Self::Standby],
            Self::PreferStandby => &[Self::Standby, Self::Any],
        }
    }

    /// Why a server is not what is wanted; `None` when it is.
    pub const fn misfit(self, kind: ServerKind) -> Option<&'static str> {
        match (self, kind) {
            (Self::ReadWrite | Self::Primary, ServerKind { standby: true, .. }) => Some("it is a standby"),
            (Self::ReadWrite, ServerKind { read_only: true, .. }) => Some("its sessions are read only"),
            (Self::ReadOnly, ServerKind { standby: false, read_only: false }) => Some("its sessions may write"),
            (Self::Standby | Self::PreferStandby, ServerKind { standby: false, .. }) => Some("it is no standby"),
            (Self::Any | Self::ReadWrite | Self::ReadOnly | Self::Primary, _)
            | (Self::Standby | Self::PreferStandby, ServerKind { standby: true, .. }) => None,
        }
    }
}

/// What the server of a fresh session is that was started with `asked`. Since PostgreSQL 14 it has said so by itself. A
/// session that asked for read-only transactions says nothing about the server's.
///
/// # Errors
/// The server could not be asked.
pub async fn kind_of(upstream: &mut Upstream, asked: &StartupParameters) -> Result<ServerKind, Failure> {
    let own_read_only = asked.settings.iter().any(|(name, _)| name == "default_transaction_read_only");
    let parameters = &upstream.greeting.parameters;
    let told = |name: &str| parameters.get(name).map(|value| value == "on");
    let (standby, read_only) = match (told("in_hot_standby"), told("default_transaction_read_only")) {
        (Some(standby), Some(read_only)) => (standby, read_only),
        (_, _) => {
            let sql = "SHOW transaction_read_only; SELECT pg_catalog.pg_is_in_recovery()::pg_catalog.text";
            let rows = simple_query_rows(upstream, sql, &LIMITS).await?;
            let said = |row: usize, word: &str| rows.get(row).and_then(|row| row.first()?.as_deref()) == Some(word);
            (said(1, "true"), said(0, "on"))
        }
    };
    Ok(ServerKind { standby, read_only: read_only && !own_read_only })
}

impl fmt::Display for SessionAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wish_fits_the_servers_that_libpq_takes_for_it() {
        use SessionAttributes::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};
        let kinds = [(false, false), (false, true), (true, false), (true, true)];
        for (wish, fits) in [
            (Any, [true, true, true, true]),
            (ReadWrite, [true, false, false, false]),
            (ReadOnly, [false, true, true, true]),
            (Primary, [true, true, false, false]),
            (Standby, [false, false, true, true]),
        ] {
            let found = kinds.map(|(standby, read_only)| wish.misfit(ServerKind { standby, read_only }).is_none());
            assert_eq!(found, fits, "{wish}");
        }
        assert_eq!(PreferStandby.wishes(), [Standby, Any]);
    }
}
