//! People at the identity provider, and tokens: real ones, and signed ones that it would never give.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::database::unique;
use crate::servers::{Idp, servers};

const HTTP_DEADLINE: Duration = Duration::from_secs(20);
const PASSWORD: &str = "correct horse";

/// Somebody whom the identity provider knows.
#[derive(Debug, Clone)]
pub struct Person {
    /// Their `sub`, of this test's own.
    pub subject: String,
    /// The groups in their tokens.
    pub groups: Vec<String>,
}

impl Person {
    /// Makes somebody; `name` is the start of their subject.
    pub fn enrol(name: &str, groups: &[&str]) -> Result<Self> {
        let idp = &servers()?.idp;
        let subject = unique(name);
        let person = json!({ "username": subject, "password": PASSWORD, "groups": groups });
        http(idp, "/api/runtime/users", "application/json", &person.to_string())?;
        Ok(Self { subject, groups: groups.iter().map(ToString::to_string).collect() })
    }

    /// A token from the provider, as the OAuth password grant gives it: valid for an hour.
    pub fn token(&self) -> Result<String> {
        let idp = &servers()?.idp;
        // No value needs to be escaped in a form, but for the space.
        let form = format!(
            "grant_type=password&client_id={}&client_secret={}&username={}&password={}",
            idp.client,
            idp.secret,
            self.subject,
            PASSWORD.replace(' ', "+")
        );
        let answer = http(idp, "/token", "application/x-www-form-urlencoded", &form)?;
        let token = answer.get("access_token").and_then(Value::as_str);
        Ok(token.with_context(|| format!("no access_token in {answer}"))?.to_owned())
    }

    /// The claims that the provider would put in a token now, to be changed and [`sign`]ed. `lifetime`: until `exp`.
    pub fn claims(&self, lifetime: Duration) -> Result<Value> {
        let idp = &servers()?.idp;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        Ok(json!({
            "iss": idp.issuer,
            "sub": self.subject,
            "aud": idp.audience,
            "iat": now,
            "nbf": now,
            "exp": now + lifetime.as_secs(),
            "jti": unique("jti"),
            "groups": self.groups,
        }))
    }

    /// A token with the provider's own signature that expires after `lifetime`: the provider's last a minute at least.
    pub fn short_token(&self, lifetime: Duration) -> Result<String> {
        sign(&self.claims(lifetime)?)
    }
}

/// Signs `claims` with the provider's own key.
pub fn sign(claims: &Value) -> Result<String> {
    let idp = &servers()?.idp;
    let key = std::fs::read(&idp.key).with_context(|| format!("cannot read {}", idp.key.display()))?;
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(idp.key_id.clone());
    Ok(jsonwebtoken::encode(&header, claims, &EncodingKey::from_rsa_pem(&key)?)?)
}

/// Posts `body` to the provider and gives the JSON that it answers with.
fn http(idp: &Idp, path: &str, content: &str, body: &str) -> Result<Value> {
    let address = idp.issuer.strip_prefix("http://").context("the provider isn't at an http address")?;
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot reach {}", idp.issuer))?;
    stream.set_read_timeout(Some(HTTP_DEADLINE))?;
    // HTTP 1.0: the answer ends with the connection, and is never in chunks.
    write!(
        stream,
        "POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: {content}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status.starts_with('2'), "{path} answered {status}: {body}");
    serde_json::from_str(body).with_context(|| format!("{path} answered {body}"))
}
