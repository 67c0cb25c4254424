//! What is said of TLS: which version, what was verified, and when the server's certificate ends.

use std::time::{SystemTime, UNIX_EPOCH};

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Steps;
use crate::{
    config,
    protocol::postgres::upstream::{TlsMode, Upstream, UpstreamSettings, UpstreamStream},
};

/// A certificate that ends within this is warned of, in days.
const SOON: i64 = 30;

pub(super) fn look(
    steps: &mut Steps,
    connection: &config::Connection,
    settings: &UpstreamSettings,
    upstream: &Upstream,
) {
    let UpstreamStream::Tls(tls) = &upstream.stream else {
        if upstream.address.ip().is_loopback() {
            return steps.ok("tls", "none, and the server is reached by loopback alone");
        }
        let mend = "set `tls = \"verify-full\"`, and `ssl = on` at the server";
        return steps.warn("tls", "none: everyone on the way can read and change what is said", mend);
    };
    let (_, session) = tls.get_ref();
    let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
    let version = version.replace('_', ".");
    let against = match &connection.ca_file {
        Some(file) => file.display().to_string(),
        None => "the system's roots".to_owned(),
    };
    let verified = match settings.tls.mode() {
        TlsMode::VerifyFull => format!("for `{}`, against {against}", settings.host),
        TlsMode::VerifyCa => format!("against {against}, for no name"),
        TlsMode::Require | TlsMode::Disable => "not verified".to_owned(),
    };
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let parsed = certificate.and_then(|certificate| X509Certificate::from_der(certificate).ok());
    let Some((_, parsed)) = parsed else {
        return steps.warn("tls", format!("{version}; certificate {verified}"), "look at the server's certificate");
    };
    let end = parsed.validity().not_after.timestamp();
    let left = end.saturating_sub(now()).div_euclid(24 * 3600);
    let until =
        jiff::Timestamp::from_second(end).map_or_else(|_| "an impossible time".to_owned(), |end| end.to_string());
    let seen = format!("{version}; certificate of {} {verified}; it ends at {until}", names(&parsed));
    match settings.tls.mode() {
        TlsMode::Require | TlsMode::Disable => {
            steps.warn("tls", seen, "set `tls = \"verify-full\"`: whoever answers at the address is believed now");
        }
        TlsMode::VerifyCa => {
            steps.warn("tls", seen, "set `tls = \"verify-full\"`: any server of that CA is believed now")
        }
        TlsMode::VerifyFull if left < SOON => {
            steps.warn("tls", format!("{seen}, in {left} days"), "renew the server's certificate");
        }
        TlsMode::VerifyFull => steps.ok("tls", seen),
    }
}

/// Whom the certificate is for.
fn names(certificate: &X509Certificate<'_>) -> String {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names: Vec<String> = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        })
        .collect();
    if names.is_empty() { certificate.subject().to_string() } else { names.join(", ") }
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
    let v6 = <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from);
    v4.or(v6).ok().map(|address| address.to_string())
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
