//! A connection's servers, which of them is wanted, and the certificate that they are shown: checked.

use std::path::PathBuf;

use super::{
    Host, UpstreamTls,
    check::{Checker, Place},
    host,
};

impl Checker<'_> {
    pub(super) fn hosts(
        &mut self,
        place: &Place,
        one: Option<String>,
        several: &[String],
        port: Option<u16>,
    ) -> Vec<Host> {
        if port == Some(0) {
            self.fault(place, "port", "0 is no port; use the server's, mostly 5432");
        }
        let port = port.unwrap_or(5432);
        match (one, several) {
            (Some(name), []) => {
                if !host::is_name(&name) {
                    self.fault(place, "host", no_host(&name));
                }
                vec![Host { name, port }]
            }
            (None, [_, ..]) => {
                let parsed = several.iter().filter_map(|text| match Host::parse(text, port) {
                    Ok(host) => Some(host),
                    Err(fault) => {
                        self.fault(place, "hosts", fault);
                        None
                    }
                });
                parsed.collect()
            }
            (None, []) => {
                self.fault(place, "", "names no server; set `host`, or `hosts` to several");
                Vec::new()
            }
            (Some(_), [_, ..]) => {
                self.fault(place, "host", "stands beside `hosts`; put all servers into `hosts`");
                Vec::new()
            }
        }
    }

    pub(super) fn client_certificate(
        &mut self,
        place: &Place,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        tls: UpstreamTls,
    ) -> Option<(PathBuf, PathBuf)> {
        let pair = match (certificate, key) {
            (None, None) => return None,
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(lone), None) => {
                self.fault(
                    place,
                    "client_cert_file",
                    "stands without `client_key_file`; name the certificate's key too",
                );
                (lone.clone(), lone)
            }
            (None, Some(lone)) => {
                self.fault(
                    place,
                    "client_key_file",
                    "stands without `client_cert_file`; name the key's certificate too",
                );
                (lone.clone(), lone)
            }
        };
        if tls == UpstreamTls::Disable {
            self.fault(place, "client_cert_file", "is never shown with `tls = \"disable\"`; leave one of the two out");
        }
        Some((
            self.absolute(place, "client_cert_file", Some(pair.0), ""),
            self.absolute(place, "client_key_file", Some(pair.1), ""),
        ))
    }
}

/// What a text is that is no host, and what to write.
fn no_host(host: &str) -> String {
    match host.rsplit_once(':') {
        Some((name, port)) if host::is_name(name) && port.parse::<u16>().is_ok() => {
            format!("has a port in it; write `host = \"{name}\"` and `port = {port}`")
        }
        _ if host.is_empty() || host.contains('/') => {
            "must be a host name or an address; Unix sockets go to `unix_sockets`".to_owned()
        }
        _ => {
            let shown = host.escape_debug();
            format!("`{shown}` is neither a host name nor an address; write `db.internal`, `10.0.0.5` or `fd00::5`")
        }
    }
}
