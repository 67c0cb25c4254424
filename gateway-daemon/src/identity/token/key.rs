//! An issuer's keys: a JWK set (RFC 7517), read once. A key that cannot check a signature stays in the set with its
//! fault, so that a token that names it is told why.

use std::{collections::HashMap, sync::Arc};

use jsonwebtoken::{DecodingKey, crypto::aws_lc};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{Algorithm, MAX_KEY_ID_LEN, base64url};
use crate::identity::json::{self, JsonError};

/// Keys in one set; more are refused, never cut.
pub const MAX_KEYS: usize = 100;

/// The least an RSA modulus may have (RFC 7518 section 3.3), and the most that the verifier takes.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why a key cannot check a token's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// `use` is not `sig`, `key_ops` lacks `verify`, or neither is there and no `alg` that signs.
    #[error("it is not declared for signatures (`use`, `key_ops` or `alg`)")]
    Purpose,
    /// Neither RSA, EC nor OKP.
    #[error("its type (`kty`) is none that Weir knows")]
    Type,
    /// The curve is none that Weir knows.
    #[error("its curve (`crv`) is none that Weir knows")]
    Curve,
    /// The key material is missing, malformed or of the wrong length.
    #[error("its parameters are malformed")]
    Malformed,
    /// RSA modulus out of range.
    #[error("its RSA modulus has {bits} bits; 2048 to 8192 are accepted")]
    RsaSize {
        /// What it has.
        bits: usize,
    },
    /// The token's algorithm is not for this key's type or curve.
    #[error("it is a {kind} key, which cannot make {algorithm} signatures")]
    Mismatch {
        /// What the key is.
        kind: &'static str,
        /// The token's algorithm.
        algorithm: Algorithm,
    },
    /// The key's own `alg` is another.
    #[error("its `alg` is not the token's {algorithm}")]
    OtherAlgorithm {
        /// The token's algorithm.
        algorithm: Algorithm,
    },
    /// Two keys with one `kid`.
    #[error("the set has more than one key with this `kid`")]
    Ambiguous,
    /// A private or symmetric key, published.
    #[error("the set shows its private part")]
    Private,
}

/// Why a whole set is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// See [`JsonError`].
    #[error("the key set {0}")]
    Json(JsonError),
    /// No `keys`, or not an array of objects.
    #[error("the key set has no array `keys` of objects")]
    Keys,
    /// Over [`MAX_KEYS`].
    #[error("the key set has more than {limit} keys")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}

/// An issuer's keys by `kid`. Keys without one are left out: no token can name them.
#[derive(Debug, Clone, Default)]
pub struct KeySet {
    keys: HashMap<Box<str>, Result<Arc<Key>, KeyFault>>,
}

/// One key that can check signatures.
#[derive(Debug)]
pub(super) struct Key {
    kind: Kind,
    /// The JWK's `alg`, where it has one.
    algorithm: Option<Box<str>>,
    decoding: DecodingKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa { modulus_len: usize },
    P256,
    P384,
    Ed25519,
}

impl KeySet {
    /// Reads a JWK set.
    ///
    /// # Errors
    /// When the set as a whole is malformed; a key that is stays in the set as one that refuses.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        let set = json::parse_object(text).map_err(KeySetError::Json)?;
        let Some(Value::Array(jwks)) = set.get("keys") else { return Err(KeySetError::Keys) };
        if jwks.len() > MAX_KEYS {
            return Err(KeySetError::TooMany { limit: MAX_KEYS });
        }
        let mut keys = HashMap::new();
        for jwk in jwks {
            let Value::Object(jwk) = jwk else { return Err(KeySetError::Keys) };
            let Some(Value::String(kid)) = jwk.get("kid") else { continue };
            if kid.is_empty() || kid.len() > MAX_KEY_ID_LEN {
                continue;
            }
            keys.entry(kid.as_str().into())
                .and_modify(|key| *key = Err(KeyFault::Ambiguous))
                .or_insert_with(|| Key::read(jwk).map(Arc::new));
        }
        Ok(Self { keys })
    }

    /// Whether a key has this `kid`, usable or not.
    pub fn knows(&self, kid: &str) -> bool {
        self.keys.contains_key(kid)
    }

    /// How many keys can be named.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key can be named.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// What its keys sign with: a key's own `alg`, or the first that its type can make.
    pub fn algorithms(&self) -> Vec<Algorithm> {
        let of = |key: &Arc<Key>| Algorithm::ALL.into_iter().find(|&algorithm| key.fits(algorithm).is_ok());
        let made: Vec<Algorithm> = self.keys.values().flatten().filter_map(of).collect();
        Algorithm::ALL.into_iter().filter(|algorithm| made.contains(algorithm)).collect()
    }

    /// The key to check a signature of `algorithm` with; `None` when none has this `kid`.
    pub(super) fn find(&self, kid: &str, algorithm: Algorithm) -> Option<Result<&Key, KeyFault>> {
        let key = match self.keys.get(kid)? {
            Ok(key) => key,
            Err(fault) => return Some(Err(*fault)),
        };
        Some(key.fits(algorithm).map(|()| &**key))
    }
}

impl Key {
    fn read(jwk: &Map<String, Value>) -> Result<Self, KeyFault> {
        if ["d", "p", "q", "k"].iter().any(|private| jwk.contains_key(*private)) {
            return Err(KeyFault::Private);
        }
        check_purpose(jwk)?;
        let (kind, decoding) = match text(jwk, "kty")? {
            "RSA" => read_rsa(jwk)?,
            "EC" => read_ec(jwk)?,
            "OKP" => read_okp(jwk)?,
            _ => return Err(KeyFault::Type),
        };
        let algorithm = match jwk.get("alg") {
            None => None,
            Some(Value::String(algorithm)) => Some(algorithm.as_str().into()),
            Some(_) => return Err(KeyFault::Malformed),
        };
        Ok(Self { kind, algorithm, decoding })
    }

    fn fits(&self, algorithm: Algorithm) -> Result<(), KeyFault> {
        let kind = match (self.kind, algorithm) {
            (Kind::Rsa { .. }, Algorithm::Rs256 | Algorithm::Ps256)
            | (Kind::P256, Algorithm::Es256)
            | (Kind::P384, Algorithm::Es384)
            | (Kind::Ed25519, Algorithm::EdDsa) => None,
            (Kind::Rsa { .. }, _) => Some("RSA"),
            (Kind::P256, _) => Some("P-256"),
            (Kind::P384, _) => Some("P-384"),
            (Kind::Ed25519, _) => Some("Ed25519"),
        };
        if let Some(kind) = kind {
            return Err(KeyFault::Mismatch { kind, algorithm });
        }
        match &self.algorithm {
            Some(own) if **own != *algorithm.name() => Err(KeyFault::OtherAlgorithm { algorithm }),
            Some(_) | None => Ok(()),
        }
    }

    /// The bytes of each signature that this key makes.
    pub(super) const fn signature_len(&self) -> usize {
        match self.kind {
            Kind::Rsa { modulus_len } => modulus_len,
            Kind::P256 | Kind::Ed25519 => 64,
            Kind::P384 => 96,
        }
    }

    /// Whether `signature` is this key's over `message`.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &Zeroizing<Vec<u8>>) -> bool {
        let make = aws_lc::DEFAULT_PROVIDER.verifier_factory;
        make(&algorithm.jsonwebtoken(), &self.decoding)
            .is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
    }
}

/// `use` and `key_ops` must agree where both are there (RFC 7517 section 4.3). One must be, or an `alg` that is for
/// signatures alone.
fn check_purpose(jwk: &Map<String, Value>) -> Result<(), KeyFault> {
    let by_use = jwk.get("use").map(|purpose| purpose.as_str() == Some("sig"));
    let by_operations = match jwk.get("key_ops") {
        None => None,
        Some(Value::Array(operations)) => Some(operations.iter().any(|name| name.as_str() == Some("verify"))),
        Some(_) => Some(false),
    };
    match (by_use, by_operations) {
        (Some(true), None | Some(true)) | (None, Some(true)) => Ok(()),
        (None, None) if jwk.get("alg").and_then(Value::as_str).is_some_and(signs) => Ok(()),
        (None, None) | (Some(false), _) | (_, Some(false)) => Err(KeyFault::Purpose),
    }
}

/// Whether an algorithm's name says that its keys sign, and do nothing else.
fn signs(algorithm: &str) -> bool {
    Algorithm::from_name(algorithm).is_some()
}

fn read_rsa(jwk: &Map<String, Value>) -> Result<(Kind, DecodingKey), KeyFault> {
    let modulus = bytes(jwk, "n")?;
    let exponent = bytes(jwk, "e")?;
    // RFC 7518 section 6.3.1.1: the fewest octets that hold the number, so no zero leads.
    let (Some(1..), Some(1..)) = (modulus.first(), exponent.first()) else {
        return Err(KeyFault::Malformed);
    };
    let unused = modulus.first().map_or(0, |first| first.leading_zeros());
    let bits = modulus.len().saturating_mul(8).saturating_sub(usize::try_from(unused).unwrap_or(0));
    if !RSA_BITS.contains(&bits) {
        return Err(KeyFault::RsaSize { bits });
    }
    let kind = Kind::Rsa { modulus_len: modulus.len() };
    Ok((kind, DecodingKey::from_rsa_raw_components(&modulus, &exponent)))
}

fn read_ec(jwk: &Map<String, Value>) -> Result<(Kind, DecodingKey), KeyFault> {
    let (kind, coordinate_len) = match text(jwk, "crv")? {
        "P-256" => (Kind::P256, 32),
        "P-384" => (Kind::P384, 48),
        _ => return Err(KeyFault::Curve),
    };
    let (x, y) = (bytes(jwk, "x")?, bytes(jwk, "y")?);
    if x.len() != coordinate_len || y.len() != coordinate_len {
        return Err(KeyFault::Malformed);
    }
    // SEC 1 section 2.3.3: an uncompressed point is 4, x, y.
    let point = [&[4], x.as_slice(), y.as_slice()].concat();
    Ok((kind, DecodingKey::from_ec_der(&point)))
}

fn read_okp(jwk: &Map<String, Value>) -> Result<(Kind, DecodingKey), KeyFault> {
    let "Ed25519" = text(jwk, "crv")? else { return Err(KeyFault::Curve) };
    let x = bytes(jwk, "x")?;
    if x.len() != 32 {
        return Err(KeyFault::Malformed);
    }
    Ok((Kind::Ed25519, DecodingKey::from_ed_der(&x)))
}

fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Result<&'a str, KeyFault> {
    jwk.get(name).and_then(Value::as_str).ok_or(KeyFault::Malformed)
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, KeyFault> {
    base64url(text(jwk, name)?).map_err(|_| KeyFault::Malformed)
}
