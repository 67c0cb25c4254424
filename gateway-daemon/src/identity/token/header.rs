//! The JOSE header: which algorithm, which key, and nothing that would change either.

use serde_json::Value;

use super::{Algorithm, MAX_KEY_ID_LEN, Part, TokenError, TokenRules};
use crate::identity::json;

/// Fields that bring a key (`jku`, `jwk`, `x5u`, `x5c`), or change what is signed or how it is read.
const FORBIDDEN: [&str; 8] = ["crit", "jku", "jwk", "x5u", "x5c", "zip", "b64", "enc"];

/// The `typ`s of an access token (RFC 9068 section 2.1) and of a plain JWT. Compared without case, as media types are.
const TYPES: [&str; 3] = ["JWT", "at+jwt", "application/at+jwt"];

/// Algorithm and `kid` of a header that holds.
pub(super) fn read(header: &[u8], rules: &TokenRules) -> Result<(Algorithm, String), TokenError> {
    let header = json::parse_object(header).map_err(|fault| TokenError::Json { part: Part::Header, fault })?;
    if let Some(name) = FORBIDDEN.into_iter().find(|name| header.contains_key(*name)) {
        return Err(TokenError::ForbiddenHeader { name });
    }
    let algorithm = algorithm(header.get("alg"), rules)?;
    match header.get("typ") {
        None => {}
        Some(Value::String(typ)) if TYPES.iter().any(|known| known.eq_ignore_ascii_case(typ)) => {}
        Some(_) => return Err(TokenError::Type),
    }
    let malformed = TokenError::KeyIdMalformed { limit: MAX_KEY_ID_LEN };
    match header.get("kid") {
        None => Err(TokenError::KeyIdMissing),
        Some(Value::String(kid)) if (1..=MAX_KEY_ID_LEN).contains(&kid.len()) => Ok((algorithm, kid.clone())),
        Some(_) => Err(malformed),
    }
}

/// `none` and HMAC have refusals of their own: they are what forgers try.
fn algorithm(alg: Option<&Value>, rules: &TokenRules) -> Result<Algorithm, TokenError> {
    let Some(Value::String(name)) = alg else { return Err(TokenError::AlgorithmMissing) };
    let Some(algorithm) = Algorithm::from_name(name) else {
        return Err(match name.to_ascii_uppercase().as_str() {
            "NONE" => TokenError::Unsigned,
            "HS256" | "HS384" | "HS512" => TokenError::Symmetric,
            _ => TokenError::AlgorithmUnknown,
        });
    };
    if rules.allows(algorithm) { Ok(algorithm) } else { Err(TokenError::AlgorithmNotAllowed { algorithm }) }
}
