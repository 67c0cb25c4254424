//! The groups in a token, qualified by its issuer.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Map, Value};

use super::{Group, MAX_GROUP_LEN, MAX_GROUPS, TokenError, TokenRules, has_hidden_characters};

/// All groups that the rules' pointers lead to, sorted, without doubles.
///
/// A token that says that its groups were left out is refused: with no groups it would slip past every policy that
/// forbids something to one.
pub(super) fn read(claims: &Map<String, Value>, rules: &TokenRules) -> Result<Vec<Group>, TokenError> {
    // OpenID Connect Core section 5.6.2, and what Microsoft Entra sends over 200 groups.
    if let Some(claim) =
        ["_claim_names", "_claim_sources", "hasgroups"].into_iter().find(|name| claims.contains_key(*name))
    {
        return Err(TokenError::GroupOverage { claim });
    }
    let claims = Pointed(claims);
    let mut groups = BTreeSet::new();
    for pointer in &rules.groups {
        let Some(found) = claims.pointer(pointer) else { continue };
        for name in names(found).ok_or_else(|| TokenError::GroupsType { pointer: Arc::clone(pointer) })? {
            if name.is_empty() || name.len() > MAX_GROUP_LEN || has_hidden_characters(name) {
                return Err(TokenError::GroupName { pointer: Arc::clone(pointer), limit: MAX_GROUP_LEN });
            }
            groups.insert(Group(format!("{}/{name}", rules.name).into()));
            if groups.len() > MAX_GROUPS {
                return Err(TokenError::GroupsTooMany { limit: MAX_GROUPS });
            }
        }
    }
    Ok(groups.into_iter().collect())
}

/// Claims that a JSON pointer can be followed in.
struct Pointed<'a>(&'a Map<String, Value>);

impl<'a> Pointed<'a> {
    fn pointer(&self, pointer: &str) -> Option<&'a Value> {
        let path = pointer.strip_prefix('/')?;
        let (first, rest) = path.find('/').map_or((path, ""), |at| path.split_at(at));
        // RFC 6901 section 4: `~1` first, or `~01` would become `/`.
        self.0.get(&first.replace("~1", "/").replace("~0", "~"))?.pointer(rest)
    }
}

/// The names in one of the three shapes that providers use; `None` for any other.
fn names(found: &Value) -> Option<Vec<&str>> {
    match found {
        Value::Array(items) => items.iter().map(Value::as_str).collect(),
        // As `scope` in RFC 6749 section 3.3.
        Value::String(text) => Some(text.split(' ').filter(|name| !name.is_empty()).collect()),
        Value::Object(entries) => Some(entries.keys().map(String::as_str).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}
