//! One question to Cedar: may this agent do this one thing to this one object? Everything that is unclear refuses.

use std::time::SystemTime;

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision, Entities, EntityUid, PolicyId, PolicySet, Request,
    RestrictedExpression,
};

use super::rule::Reads;
use crate::{limits::Volume, sql::Columns};

/// What of a question lies outside the statement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances<'a> {
    /// `postgres`.
    pub(super) protocol: &'a str,
    /// When it is asked.
    pub(super) now: SystemTime,
    /// What the agent has had of the object.
    pub(super) volume: Volume,
}

/// What came of one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// At least one permit is satisfied, no forbid is, and none failed.
    Permitted,
    /// At least one forbid is satisfied.
    Forbidden,
    /// Nothing is satisfied.
    Unpermitted,
    /// A policy failed, or the question could not be put: refused, whatever the others say.
    Failed {
        /// Why, for people.
        message: String,
    },
}

/// Puts one question. The policies that determine the outcome come with it, sorted: the permits, the forbids, or those
/// that failed.
pub(super) fn ask(
    policies: &PolicySet,
    entities: &Entities,
    [principal, action, resource]: [EntityUid; 3],
    context: Context,
) -> (Outcome, Vec<PolicyId>) {
    // Not validated against the schema here: a test holds that whatever can be asked conforms.
    let request = match Request::new(principal, action, resource, context, None) {
        Ok(request) => request,
        Err(error) => return (Outcome::Failed { message: error.to_string() }, Vec::new()),
    };
    let response = Authorizer::new().is_authorized(&request, policies, entities);
    let diagnostics = response.diagnostics();
    let mut reasons: Vec<_> = diagnostics.reason().cloned().collect();
    let mut failed: Vec<_> = diagnostics.errors().map(failure).collect();
    reasons.sort_unstable();
    failed.sort_unstable();
    match (failed.into_iter().next(), response.decision(), reasons.is_empty()) {
        // A forbid that is satisfied explains more than another policy that failed; both refuse.
        (_, Decision::Deny, false) => (Outcome::Forbidden, reasons),
        (Some((policy, message)), Decision::Allow | Decision::Deny, _) => (Outcome::Failed { message }, vec![policy]),
        (None, Decision::Deny, true) => (Outcome::Unpermitted, reasons),
        (None, Decision::Allow, false) => (Outcome::Permitted, reasons),
        (None, Decision::Allow, true) => (Outcome::Failed { message: "allowed, but by no policy".to_owned() }, reasons),
    }
}

fn failure(error: &AuthorizationError) -> (PolicyId, String) {
    match error {
        AuthorizationError::PolicyEvaluationError(error) => (error.policy_id().clone(), error.to_string()),
    }
}

/// The context of a question: of it those attributes that the policies asked can read. The others would cost more than
/// the evaluation, the time above all.
///
/// # Errors
/// A time that Cedar cannot hold.
pub(super) fn context(columns: &Columns, circumstances: &Circumstances<'_>, reads: Reads) -> Result<Context, String> {
    let mut pairs = Vec::with_capacity(6);
    if reads.columns {
        pairs.push(("columns".to_owned(), RestrictedExpression::new_set(named(columns))));
    }
    if reads.all_columns {
        let all = matches!(columns, Columns::All);
        pairs.push(("allColumns".to_owned(), RestrictedExpression::new_bool(all)));
    }
    if reads.now {
        pairs.push(("now".to_owned(), RestrictedExpression::new_datetime(datetime(circumstances.now)?)));
    }
    if reads.protocol {
        let protocol = circumstances.protocol.to_owned();
        pairs.push(("protocol".to_owned(), RestrictedExpression::new_string(protocol)));
    }
    if reads.volume {
        let Volume { rows, bytes } = circumstances.volume;
        for (name, had) in [("rowsThisHour", rows), ("bytesThisHour", bytes)] {
            // More than Cedar's numbers hold is as much as they hold.
            let had = i64::try_from(had).unwrap_or(i64::MAX);
            pairs.push((name.to_owned(), RestrictedExpression::new_long(had)));
        }
    }
    Context::from_pairs(pairs).map_err(|error| error.to_string())
}

fn named(columns: &Columns) -> Vec<RestrictedExpression> {
    match columns {
        Columns::Some(names) => names.iter().map(|name| RestrictedExpression::new_string(name.to_string())).collect(),
        Columns::None | Columns::All => Vec::new(),
    }
}

/// A time in the one form that Cedar's `datetime` takes with milliseconds.
fn datetime(now: SystemTime) -> Result<String, String> {
    let now = jiff::Timestamp::try_from(now).map_err(|error| format!("the clock is out of range: {error}"))?;
    Ok(now.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())
}

#[cfg(test)]
impl Circumstances<'static> {
    /// A fixed moment: Monday, 23 November 2026, 12:00 UTC.
    pub(super) fn test() -> Self {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_795_435_200);
        Self { protocol: "postgres", now, volume: Volume { rows: 7, bytes: 700 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::schema::{Kind, action_uid};

    /// Each row: permit and forbid, each absent, satisfied (`true`), not satisfied (`false`) or failing; then what comes
    /// of it and which policies say so. Every row has its mirror image: the same with the other value of one of the two.
    const TABLE: &str = "
        permit - | forbid - = unpermitted
        permit t | forbid - = permitted p
        permit f | forbid - = unpermitted
        permit e | forbid - = failed p
        permit - | forbid t = forbidden f
        permit t | forbid t = forbidden f
        permit f | forbid t = forbidden f
        permit e | forbid t = forbidden f
        permit - | forbid f = unpermitted
        permit t | forbid f = permitted p
        permit f | forbid f = unpermitted
        permit e | forbid f = failed p
        permit - | forbid e = failed f
        permit t | forbid e = failed f
        permit f | forbid e = failed f
        permit e | forbid e = failed f
    ";

    fn policy(id: &str, effect: &str, satisfied: &str) -> Option<cedar_policy::Policy> {
        let condition = match satisfied {
            "-" => return None,
            "t" => "true",
            "f" => "false",
            "e" => "9223372036854775807 + 1 > 0",
            other => panic!("{other}"),
        };
        let text = format!("{effect}(principal, action, resource) when {{ {condition} }};");
        Some(cedar_policy::Policy::parse(Some(PolicyId::new(id)), text).unwrap())
    }

    #[test]
    fn forbid_beats_permit_and_failure_beats_permit() {
        let rows: Vec<_> = TABLE.lines().map(str::trim).filter(|row| !row.is_empty()).collect();
        assert_eq!(rows.len(), 16);
        for row in rows {
            let words: Vec<_> = row.split_whitespace().collect();
            let policies = [policy("p", "permit", words[1]), policy("f", "forbid", words[4])].into_iter().flatten();
            let set = PolicySet::from_policies(policies).unwrap();
            let uids = [Kind::Agent.uid("a"), action_uid("select"), Kind::Database.uid("c/d")];
            let context = context(&Columns::None, &Circumstances::test(), Reads::everything()).unwrap();
            let (outcome, reasons) = ask(&set, &Entities::empty(), uids, context);
            let outcome = match outcome {
                Outcome::Permitted => "permitted",
                Outcome::Forbidden => "forbidden",
                Outcome::Unpermitted => "unpermitted",
                Outcome::Failed { .. } => "failed",
            };
            let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
            assert_eq!((outcome, reasons.join(" ")), (words[6], words[7..].join(" ")), "{row}");
        }
    }

    #[test]
    fn a_clock_out_of_range_is_an_error_and_not_a_time() {
        let far = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1 << 42);
        let circumstances = Circumstances { now: far, ..Circumstances::test() };
        assert!(context(&Columns::None, &circumstances, Reads::everything()).is_err());
        assert!(context(&Columns::None, &circumstances, Reads::default()).is_ok());
    }
}
