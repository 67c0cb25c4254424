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
    check_type(header.get("typ"), &rules.types)?;
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

/// The type must be one that the issuer's configuration names; where that names none, no type at all will do as well.
fn check_type(found: Option<&Value>, wanted: &[Box<str>]) -> Result<(), TokenError> {
    let is = |typ: &str| match wanted {
        [] => TYPES.iter().any(|known| known.eq_ignore_ascii_case(typ)),
        wanted => wanted.iter().any(|wanted| same_type(wanted, typ)),
    };
    match (found, wanted) {
        (None, []) => Ok(()),
        (Some(Value::String(typ)), _) if is(typ) => Ok(()),
        (Some(_), []) => Err(TokenError::Type),
        (None | Some(_), _) => Err(TokenError::OtherType { expected: wanted.join("`, `").into() }),
    }
}

/// Media types, whose `application/` may be left out (RFC 7515 section 4.1.9).
fn same_type(a: &str, b: &str) -> bool {
    let short = |typ: &str| typ.to_ascii_lowercase().trim_start_matches("application/").to_owned();
    short(a) == short(b)
}
