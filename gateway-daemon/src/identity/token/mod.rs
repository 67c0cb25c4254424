//! A token's verification, without I/O: a JWT in compact form, an issuer's rules and keys in, an identity out.
//!
//! RFC 7515 (JWS), RFC 7519 (JWT), RFC 8725 (best practice), RFC 9068 (access tokens). The header is read first, since
//! it names the key; the payload is not even parsed before the signature holds. What two readers could take
//! differently is refused: names that stand twice, base64 that is not canonical, `iss` as an array. Nothing in the
//! header may bring or name a key but `kid`, and only within the issuer's own set.
//!
//! `jsonwebtoken` checks the signature alone. Its claim checks let tokens without `iss` or `aud` pass, which is
//! documented there; the ones here are Weir's own.

mod claims;
mod error;
mod groups;
mod header;
mod key;
mod rules;

use std::{sync::Arc, time::SystemTime};

use base64::{
    DecodeError, Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use secrecy::{ExposeSecret as _, SecretString};

pub use error::{Part, TokenError};
pub use key::{KeyFault, KeySet, KeySetError, MAX_KEYS};
pub use rules::{Algorithm, RulesError, TokenRules, TokenSettings};

use super::agent::{Group, Identity, Subject};

/// Bytes of a token in compact form.
pub const MAX_TOKEN_LEN: usize = 16 * 1024;
/// Bytes of a `kid`.
pub const MAX_KEY_ID_LEN: usize = 256;
/// Bytes of a `sub`. `OpenID` Connect Core section 2 allows 255.
pub const MAX_SUBJECT_LEN: usize = 255;
/// Bytes of a `jti`.
pub const MAX_TOKEN_ID_LEN: usize = 256;
/// Bytes of an `act` claim, written as JSON.
pub const MAX_ACTOR_LEN: usize = 4 * 1024;
/// Groups of one token.
pub const MAX_GROUPS: usize = 500;
/// Bytes of a group's name, without the issuer's.
pub const MAX_GROUP_LEN: usize = 256;

/// What a verified token says. Not yet an agent's: see [`Verified::into_identity`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    subject: Subject,
    groups: Vec<Group>,
    token_id: Option<String>,
    actor: Option<String>,
    token_sha256: [u8; 32],
    expires: SystemTime,
}

impl Verified {
    /// Who the token speaks for.
    pub const fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The identity of `agent`; `only` is the one subject that it is configured for, if it is.
    ///
    /// # Errors
    /// [`TokenError::OtherSubject`].
    pub fn into_identity(self, agent: Arc<str>, only: Option<&str>) -> Result<Identity, TokenError> {
        if only.is_some_and(|only| *only != *self.subject.subject) {
            return Err(TokenError::OtherSubject { agent });
        }
        let Self { subject, groups, token_id, actor, token_sha256, expires } = self;
        Ok(Identity { agent, subject, groups, token_id, actor, token_sha256, expires })
    }
}

/// A token whose form and header hold; its signature has not been looked at.
pub struct Unverified<'a> {
    /// Header and payload as they stand: what is signed.
    signed: &'a str,
    payload: &'a str,
    signature: zeroize::Zeroizing<Vec<u8>>,
    algorithm: Algorithm,
    kid: String,
    token_sha256: [u8; 32],
}

impl<'a> Unverified<'a> {
    /// Checks form and header.
    ///
    /// # Errors
    /// The first rule that the token breaks.
    pub fn parse(secret: &'a SecretString, rules: &TokenRules) -> Result<Self, TokenError> {
        let token = secret.expose_secret();
        if token.is_empty() {
            return Err(TokenError::Empty);
        }
        if token.len() > MAX_TOKEN_LEN {
            return Err(TokenError::TooLong { limit: MAX_TOKEN_LEN });
        }
        let (header, payload, signature) = split(token)?;
        let decoded_header = decode(header, Part::Header)?;
        decode(payload, Part::Payload)?;
        let signature = decode(signature, Part::Signature)?;
        let (algorithm, kid) = header::read(&decoded_header, rules)?;
        let signed = token.get(..header.len().saturating_add(1).saturating_add(payload.len())).unwrap_or_default();
        Ok(Self { signed, payload, signature, algorithm, kid, token_sha256: sha256(secret) })
    }

    /// The key that the token names.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Checks the signature, and then the claims at the time `now`.
    ///
    /// # Errors
    /// The first rule that the token breaks.
    pub fn verify(self, rules: &TokenRules, keys: &KeySet, now: SystemTime) -> Result<Verified, TokenError> {
        let key = keys
            .find(&self.kid, self.algorithm)
            .ok_or(TokenError::KeyUnknown)?
            .map_err(|fault| TokenError::KeyUnfit { fault })?;
        let (expected, found) = (key.signature_len(), self.signature.len());
        if expected != found {
            return Err(TokenError::SignatureLength { expected, found });
        }
        if !key.verifies(self.algorithm, self.signed.as_bytes(), &self.signature) {
            return Err(TokenError::Signature);
        }
        let payload = decode(self.payload, Part::Payload)?;
        claims::read(&payload, rules, now, self.token_sha256)
    }
}

/// SHA-256 of a token, by which the record names it.
pub fn sha256(token: &SecretString) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.expose_secret().as_bytes()).as_ref(),
    );
    digest
}

/// The three parts of a JWS in compact form.
fn split(token: &str) -> Result<(&str, &str, &str), TokenError> {
    let mut parts = token.split('.');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(header), Some(payload), Some(signature), None) => Ok((header, payload, signature)),
        _ => match token.split('.').count() {
            5 => Err(TokenError::Encrypted),
            found => Err(TokenError::Parts { found }),
        },
    }
}

fn decode(text: &str, part: Part) -> Result<zeroize::Zeroizing<Vec<u8>>, TokenError> {
    if text.is_empty() {
        return Err(TokenError::EmptyPart { part });
    }
    base64url(text).map(zeroize::Zeroizing::new).map_err(|error| match error {
        DecodeError::InvalidByte(_, b'=') | DecodeError::InvalidPadding => TokenError::Padding { part },
        DecodeError::InvalidByte(..) => TokenError::Character { part },
        DecodeError::InvalidLength(_) | DecodeError::InvalidLastSymbol { .. } => TokenError::NotCanonical { part },
    })
}

/// Base64url as RFC 7515 section 2 has it: no padding, no white space, and no bits left over, so that one value has
/// one text.
fn base64url(text: &str) -> Result<Vec<u8>, DecodeError> {
    const STRICT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::URL_SAFE,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::RequireNone)
            .with_decode_allow_trailing_bits(false),
    );
    STRICT.decode(text)
}

/// Whether a text has characters that a person cannot see or that change how the rest is read: controls, line and
/// paragraph separators, zero-width and bidirectional ones, tags.
fn has_hidden_characters(text: &str) -> bool {
    text.chars().any(|c| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' |
                '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    })
}
