//! The claims of a token whose signature holds.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Number, Value};

use super::{
    MAX_ACTOR_LEN, MAX_SUBJECT_LEN, MAX_TOKEN_ID_LEN, Part, Subject, TokenError, TokenRules, Verified, groups,
    has_hidden_characters,
};
use crate::identity::json;

/// 9999-12-31T23:59:59Z in seconds since 1970: the last time that every clock and every reader of the record can show.
const LAST_SECOND: u64 = 253_402_300_799;

type Claims = Map<String, Value>;

/// Reads the claims at the time `now`.
pub(super) fn read(
    payload: &[u8],
    rules: &TokenRules,
    now: SystemTime,
    token_sha256: [u8; 32],
) -> Result<Verified, TokenError> {
    let claims = json::parse_object(payload).map_err(|fault| TokenError::Json { part: Part::Payload, fault })?;
    check_issuer(&claims, rules)?;
    check_audience(&claims, rules)?;
    check_party(&claims, rules)?;
    let expires = check_times(&claims, rules, now)?;
    let subject = required_text(&claims, "sub", MAX_SUBJECT_LEN)?;
    if claims.contains_key("cnf") {
        return Err(TokenError::Bound);
    }
    Ok(Verified {
        subject: Subject { issuer: Arc::clone(&rules.issuer), subject: subject.into() },
        groups: groups::read(&claims, rules)?,
        token_id: optional_text(&claims, "jti", MAX_TOKEN_ID_LEN)?,
        actor: actor(&claims)?,
        token_sha256,
        expires,
    })
}

fn check_issuer(claims: &Claims, rules: &TokenRules) -> Result<(), TokenError> {
    match claims.get("iss") {
        None => Err(TokenError::Missing { claim: "iss" }),
        // No normal form: `https://a` and `https://a/` are two issuers (OpenID Connect Core section 16.15).
        Some(Value::String(issuer)) if **issuer == *rules.issuer => Ok(()),
        Some(Value::String(_)) => Err(TokenError::OtherIssuer { expected: Arc::clone(&rules.issuer) }),
        Some(_) => Err(TokenError::ClaimType { claim: "iss", wanted: "a string" }),
    }
}

fn check_audience(claims: &Claims, rules: &TokenRules) -> Result<(), TokenError> {
    let not_text = TokenError::ClaimType { claim: "aud", wanted: "a string or an array of strings" };
    let ours = match claims.get("aud") {
        None => return Err(TokenError::Missing { claim: "aud" }),
        Some(Value::String(audience)) => **audience == *rules.audience,
        Some(Value::Array(audiences)) => {
            if !audiences.iter().all(Value::is_string) {
                return Err(not_text);
            }
            audiences.iter().any(|audience| audience.as_str() == Some(&rules.audience))
        }
        Some(_) => return Err(not_text),
    };
    if ours { Ok(()) } else { Err(TokenError::OtherAudience { expected: Arc::clone(&rules.audience) }) }
}

/// `azp`, the client that the token was issued to, where the configuration names those that may.
fn check_party(claims: &Claims, rules: &TokenRules) -> Result<(), TokenError> {
    if rules.authorized_parties.is_empty() {
        return Ok(());
    }
    match claims.get("azp") {
        None => Err(TokenError::Missing { claim: "azp" }),
        Some(Value::String(party)) if rules.authorized_parties.iter().any(|known| **known == **party) => Ok(()),
        Some(Value::String(_)) => {
            Err(TokenError::OtherParty { expected: rules.authorized_parties.join("`, `").into() })
        }
        Some(_) => Err(TokenError::ClaimType { claim: "azp", wanted: "a string" }),
    }
}

/// `exp`, which must lie ahead; `nbf` and `iat`, where they are there, must not.
fn check_times(claims: &Claims, rules: &TokenRules, now: SystemTime) -> Result<SystemTime, TokenError> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let expires = time(claims, "exp")?.ok_or(TokenError::Missing { claim: "exp" })?;
    if expires <= now {
        return Err(TokenError::Expired { ago_seconds: now.saturating_sub(expires).as_secs() });
    }
    if expires.saturating_sub(now) > rules.max_lifetime {
        return Err(TokenError::LifetimeTooLong { limit_seconds: rules.max_lifetime.as_secs() });
    }
    let latest = now.saturating_add(rules.leeway);
    if let Some(begins) = time(claims, "nbf")?.filter(|begins| *begins > latest) {
        return Err(TokenError::NotYetValid { in_seconds: begins.saturating_sub(now).as_secs() });
    }
    let issued = time(claims, "iat")?;
    if let Some(issued) = issued.filter(|issued| *issued > latest) {
        return Err(TokenError::IssuedInFuture { in_seconds: issued.saturating_sub(now).as_secs() });
    }
    if issued.is_some_and(|issued| expires.saturating_sub(issued) > rules.max_lifetime) {
        return Err(TokenError::MadeToLiveTooLong { limit_seconds: rules.max_lifetime.as_secs() });
    }
    let Some(limit) = rules.max_age else { return at(expires) };
    let issued = issued.ok_or(TokenError::Missing { claim: "iat" })?;
    let too_old = issued.saturating_add(limit);
    if too_old <= now {
        let ago_seconds = now.saturating_sub(issued).as_secs();
        return Err(TokenError::TooOld { ago_seconds, limit_seconds: limit.as_secs() });
    }
    // The identity ends with whichever comes first.
    at(expires.min(too_old))
}

fn at(expires: Duration) -> Result<SystemTime, TokenError> {
    UNIX_EPOCH.checked_add(expires).ok_or(TokenError::TimeRange { claim: "exp" })
}

/// A `NumericDate` (RFC 7519 section 2): seconds since 1970, with or without a fraction.
fn time(claims: &Claims, claim: &'static str) -> Result<Option<Duration>, TokenError> {
    match claims.get(claim) {
        None => Ok(None),
        Some(Value::Number(number)) => since_epoch(number).map(Some).ok_or(TokenError::TimeRange { claim }),
        Some(_) => Err(TokenError::ClaimType { claim, wanted: "a number" }),
    }
}

fn since_epoch(number: &Number) -> Option<Duration> {
    let time = match number.as_u64() {
        Some(seconds) => Duration::from_secs(seconds),
        None => Duration::try_from_secs_f64(number.as_f64()?).ok()?,
    };
    (time <= Duration::from_secs(LAST_SECOND)).then_some(time)
}

fn required_text<'a>(claims: &'a Claims, claim: &'static str, limit: usize) -> Result<&'a str, TokenError> {
    let text = match claims.get(claim) {
        None => return Err(TokenError::Missing { claim }),
        Some(Value::String(text)) => text,
        Some(_) => return Err(TokenError::ClaimType { claim, wanted: "a string" }),
    };
    if text.is_empty() {
        return Err(TokenError::ClaimEmpty { claim });
    }
    if text.len() > limit {
        return Err(TokenError::ClaimTooLong { claim, limit });
    }
    if has_hidden_characters(text) {
        return Err(TokenError::ClaimCharacters { claim });
    }
    Ok(text)
}

fn optional_text(claims: &Claims, claim: &'static str, limit: usize) -> Result<Option<String>, TokenError> {
    if !claims.contains_key(claim) {
        return Ok(None);
    }
    required_text(claims, claim, limit).map(|text| Some(text.to_owned()))
}

/// `act` as JSON. Only the outermost actor acts; those inside are history (RFC 8693 section 4.1).
fn actor(claims: &Claims) -> Result<Option<String>, TokenError> {
    let actor = match claims.get("act") {
        None => return Ok(None),
        Some(actor @ Value::Object(_)) => actor.to_string(),
        Some(_) => return Err(TokenError::ClaimType { claim: "act", wanted: "an object" }),
    };
    if actor.len() > MAX_ACTOR_LEN {
        return Err(TokenError::ClaimTooLong { claim: "act", limit: MAX_ACTOR_LEN });
    }
    Ok(Some(actor))
}
