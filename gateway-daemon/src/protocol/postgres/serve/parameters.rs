//! Whose a session is, told to the server: `weir.subject`, `weir.issuer` and `weir.agent`, for row security
//! (`identity_parameters`). They are start-up parameters, so RESET and DISCARD come back to them. Groups are left out: they
//! may change while a session is open, and the server would not hear of it.

use crate::{
    identity::{Identity, Run},
    protocol::postgres::{
        reserved::PARAMETERS,
        upstream::{RowLimits, Upstream, simple_query_rows},
    },
};

const LIMITS: RowLimits = RowLimits { rows: 1, bytes: 64 * 1024, deadline: std::time::Duration::from_secs(10) };

/// The parameters of a session.
pub(super) fn of(run: &Run, identity: &Identity) -> Vec<(String, String)> {
    let parameters =
        [("subject", &*identity.subject.subject), ("issuer", &*identity.subject.issuer), ("agent", &*run.agent)];
    parameters.map(|(name, value)| (format!("{PARAMETERS}{name}"), value.to_owned())).to_vec()
}

/// Asks the server whether it has them as they were sent: poolers drop parameters that they do not know, and a database of
/// another encoding reads other letters.
pub(super) async fn verify(upstream: &mut Upstream, sent: &[(String, String)]) -> Result<(), String> {
    let asked = sent.iter().map(|(name, _)| format!("pg_catalog.current_setting('{name}', true)"));
    let sql = format!("SELECT {}", asked.collect::<Vec<_>>().join(", "));
    let rows = simple_query_rows(upstream, &sql, &LIMITS).await.map_err(|failure| failure.to_string())?;
    let has: Vec<_> = rows.first().map(Vec::as_slice).unwrap_or_default().iter().map(Option::as_deref).collect();
    let missing = sent.iter().enumerate().find(|(n, (_, value))| has.get(*n) != Some(&Some(value.as_str())));
    match missing {
        None => Ok(()),
        Some((_, (name, _))) => Err(format!("the server does not have the session parameter `{name}` as it was sent")),
    }
}
