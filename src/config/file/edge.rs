//! `[tls]`, `[[certificate]]` and `[network]`: how clients come in, and from where.

use super::{address, directory, label, new_name, secret};
use crate::authenticate::Network;
use crate::config::loaded::Outside;
use crate::config::{Certificate, Countries, Networks, PlainHttp, Server, Tls, Unix};
use crate::document::{Table, Value};
use crate::relay::forwarded::ForwarderHeader;
use std::collections::HashSet;
use std::path::PathBuf;

/// What the system takes (`sun_path` of unix(7), without the zero at its end).
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// `[server] plain_http`, and whether the listeners keep to it.
pub(super) fn plain_http(table: &mut Table<'_>, server: &Server) -> PlainHttp {
    let choices = [("loopback", PlainHttp::Loopback), ("anywhere", PlainHttp::Anywhere)];
    let plain_http =
        table.optional("plain_http", |value| super::one_of(value, &choices)).unwrap_or(server.plain_http);
    let beyond = server.listen.iter().find(|address| !address.ip().is_loopback());
    if let (PlainHttp::Loopback, Some(address)) = (plain_http, beyond) {
        table.problem_at(
            "listen",
            format!(
                "{address} is not of this machine, and keys and prompts would go there in the clear: use [tls] listen, or, where a \
                 proxy in front speaks TLS, set plain_http = \"anywhere\""
            ),
        );
    }
    plain_http
}

pub(super) fn tls(table: &mut Table<'_>, server: &Server) -> Tls {
    let mut seen: HashSet<_> = server.listen.iter().copied().collect();
    let listen = table.list("listen", |value| {
        let address = address(value)?;
        seen.insert(address).then_some(address).ok_or_else(|| format!("{address} stands twice"))
    });
    Tls { listen: listen.unwrap_or_default() }
}

pub(super) fn unix(table: &mut Table<'_>) -> Unix {
    let mut seen = HashSet::new();
    let listen = table.list("listen", |value| {
        let path = directory(value)?;
        if path.as_os_str().len() > SOCKET_PATH_MAX_BYTES {
            return Err(format!("the path of a socket has at most {SOCKET_PATH_MAX_BYTES} bytes"));
        }
        seen.insert(path.clone()).then_some(path).ok_or_else(|| "it stands twice".to_owned())
    });
    let mode = table.optional("mode", |value| {
        let text = value.text()?;
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| (0o001..=0o777).contains(mode));
        mode.ok_or_else(|| format!("`{text}` is no mode such as \"0660\""))
    });
    Unix { listen: listen.unwrap_or_default(), mode: mode.unwrap_or(Unix::default().mode) }
}

/// Every `[[certificate]]`; at least one where TLS is spoken.
pub(super) fn certificates(root: &mut Table<'_>, tls: &Tls, outside: &mut Outside) -> Vec<Certificate> {
    let mut names = HashSet::new();
    let certificates = root.tables("certificate", |table| {
        let name = new_name(table, label, &mut names);
        let chain = table.required("chain", directory);
        if !table.has("key") {
            table.problem("`key` is missing");
        }
        let key = table.confidential("key", secret);
        outside.read_certificate(table, name.as_ref(), chain.as_deref(), key.as_ref());
        Some(Certificate { name: name?, chain: chain?, key: key? })
    });
    if certificates.is_empty() && !tls.listen.is_empty() {
        root.problem_at("tls", "[tls] listens, and there is no [[certificate]]");
    }
    certificates.into_iter().flatten().collect()
}

pub(super) fn networks(table: &mut Table<'_>, outside: &mut Outside) -> Networks {
    let mut list = |key| table.list(key, network).unwrap_or_default();
    let (proxy_protocol, forwarders) = (list("proxy_protocol"), list("forwarders"));
    let (allow, deny) = (list("allow"), list("deny"));
    let headers = [ForwarderHeader::XForwardedFor, ForwarderHeader::Forwarded].map(|it| (it.name(), it));
    let forwarder_header = table.optional("forwarder_header", |value| super::one_of(value, &headers));
    let forwarder_header = forwarder_header.unwrap_or_default();
    let file = table.optional("countries_file", |value| Ok(PathBuf::from(value.text()?)));
    let file = file.filter(|file| !file.as_os_str().is_empty());
    if let Some(file) = &file {
        outside.read_countries(table, file);
    }
    let countries_allow = table.list("countries_allow", country).unwrap_or_default();
    let countries_deny = table.list("countries_deny", country).unwrap_or_default();
    let choices = [("allow", true), ("deny", false)];
    let is_unknown_allowed = table.optional("unknown_country", |value| super::one_of(value, &choices));
    // A list of those who may come is not to be got round by not being known.
    let is_unknown_allowed = is_unknown_allowed.unwrap_or(countries_allow.is_empty());
    if file.is_none() && !(countries_allow.is_empty() && countries_deny.is_empty()) {
        let key = if countries_allow.is_empty() { "countries_deny" } else { "countries_allow" };
        table.problem_at(key, "countries need `countries_file`, a file in MaxMind's format that has them");
    }
    let countries =
        file.map(|file| Countries { file, allow: countries_allow, deny: countries_deny, is_unknown_allowed });
    Networks { proxy_protocol, forwarders, forwarder_header, allow, deny, countries }
}

fn network(value: Value<'_>) -> Result<Network, String> {
    let text = value.text()?;
    text.parse().map_err(|error| format!("`{text}`: {error}"))
}

/// An ISO 3166-1 alpha-2 code.
fn country(value: Value<'_>) -> Result<String, String> {
    let text = value.text()?;
    if text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_uppercase()) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a country of ISO 3166-1 such as \"DE\": two capital letters"))
    }
}
