//! How clients come in: HTTPS by name, balancers and forwarders in between, and who may come.

mod tls;
mod unix;

use crate::support::gateway::hello;
use crate::support::{Connection, Gateway, Request, Upstream, signal, wait_for};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

fn gateway(lines: &str) -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    let gateway = Gateway::builder().provider("main", &upstream).standard_models("main").lines(lines).start();
    (upstream, gateway)
}

fn ask(gateway: &Gateway, before: &[u8], forwarded: Option<&str>) -> Option<crate::support::Reply> {
    ask_with(gateway, before, &[("X-Forwarded-For", forwarded)])
}

fn ask_with(
    gateway: &Gateway,
    before: &[u8],
    headers: &[(&str, Option<&str>)],
) -> Option<crate::support::Reply> {
    let mut connection = Connection::open(gateway.address());
    let mut request = Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key);
    for (name, value) in headers {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    connection.send(&[before, &request.to_bytes(gateway.address())].concat()).ok()?;
    let reply = connection.reply().ok()?;
    gateway.note(&reply);
    Some(reply)
}

/// A gateway that knows 192.0.2.0/24 to be denied.
const DENIED: &str = "deny = [\"192.0.2.0/24\"]\n";

#[test]
fn the_address_that_a_balancer_tells_is_the_clients() {
    let (_upstream, gateway) = gateway(&format!("[network]\nproxy_protocol = [\"127.0.0.1\"]\n{DENIED}"));
    let denied = ask(&gateway, b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n", None).unwrap();
    denied.refused(403, "address_not_allowed");
    ask(&gateway, b"PROXY TCP4 198.51.100.7 127.0.0.1 1 2\r\n", None).unwrap().ok();
    let second =
        [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &[192, 0, 2, 9, 127, 0, 0, 1, 0, 1, 0, 2]]
            .concat();
    ask(&gateway, &second, None).unwrap().refused(403, "address_not_allowed");
    ask(&gateway, b"PROXY UNKNOWN\r\n", None).unwrap().ok();
    // A balancer that does not say who is behind it is not served.
    assert!(ask(&gateway, b"", None).is_none());
}

#[test]
fn nobody_else_can_tell_another_address() {
    let (_upstream, gateway) =
        gateway(&format!("[network]\nproxy_protocol = [\"198.51.100.0/24\"]\n{DENIED}"));
    let reply = ask(&gateway, b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n", None);
    assert!(reply.is_none_or(|reply| reply.status == 400));
    ask(&gateway, b"", Some("192.0.2.7")).unwrap().ok();
}

#[test]
fn behind_a_forwarder_the_client_is_the_last_address_that_is_none() {
    let (_upstream, gateway) =
        gateway(&format!("[network]\nforwarders = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n{DENIED}"));
    for (forwarded, is_denied) in [
        ("192.0.2.7", true),
        ("192.0.2.7, 10.1.2.3", true),
        ("192.0.2.7:4711", true),
        ("198.51.100.1", false),
        // What stands before the last stranger is hearsay.
        ("192.0.2.7, 198.51.100.1, 10.1.2.3", false),
        ("192.0.2.7, unknown", false),
        // A byte that is no text takes nothing of what was appended to it away.
        ("\u{ff}, 192.0.2.7", true),
        ("", false),
    ] {
        let reply = ask(&gateway, b"", Some(forwarded)).unwrap();
        match is_denied {
            true => drop(reply.refused(403, "address_not_allowed")),
            false => drop(reply.ok()),
        }
    }
}

#[test]
fn of_two_headers_only_the_one_that_the_forwarders_set_is_believed() {
    const DENIED: &str = "192.0.2.7";
    const OTHER: &str = "198.51.100.7";
    for (lines, is_of_rfc_7239) in [
        ("", false),
        ("forwarder_header = \"x-forwarded-for\"\n", false),
        ("forwarder_header = \"forwarded\"\n", true),
    ] {
        let (_upstream, gateway) =
            gateway(&format!("[network]\nforwarders = [\"127.0.0.1\"]\n{lines}{}", self::DENIED));
        for (old, new) in [(DENIED, OTHER), (OTHER, DENIED)] {
            let element = format!("for=\"[2001:db8::1]:1\", for=\"{new}:4711\";proto=https");
            let headers = [("X-Forwarded-For", Some(old)), ("Forwarded", Some(element.as_str()))];
            let reply = ask_with(&gateway, b"", &headers).unwrap();
            match if is_of_rfc_7239 { new } else { old } {
                DENIED => drop(reply.refused(403, "address_not_allowed")),
                _ => drop(reply.ok()),
            }
        }
        if is_of_rfc_7239 {
            for (said, is_denied) in [
                ("for=\"\", for=192.0.2.7", true),
                ("for=192.0.2.7, for=unknown", false),
                ("for=192.0.2.7, for=_secret;by=10.0.0.1", false),
                ("for=198.51.100.1, for=192.0.2.7, for=127.0.0.1", true),
            ] {
                let reply = ask_with(&gateway, b"", &[("Forwarded", Some(said))]).unwrap();
                match is_denied {
                    true => drop(reply.refused(403, "address_not_allowed")),
                    false => drop(reply.ok()),
                }
            }
            // The client may leave a string open in a line of its own, or send the other header alone.
            let headers = [("Forwarded", Some("for=\"")), ("Forwarded", Some("for=192.0.2.7"))];
            ask_with(&gateway, b"", &headers).unwrap().refused(403, "address_not_allowed");
            ask(&gateway, b"", Some(DENIED)).unwrap().ok();
        }
    }
}

/// A file in MaxMind's format (version 2.0 of its description): 192.0.0.0/8 is in Germany, 198.0.0.0/8 is registered in France.
fn write_countries(path: &Path) {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.push(0b010_00000 | u8::try_from(text.len()).unwrap());
        out.extend(text.as_bytes());
    }
    fn country(out: &mut Vec<u8>, key: &str, code: &str) {
        out.push(0b111_00001);
        text(out, key);
        out.push(0b111_00001);
        text(out, "iso_code");
        text(out, code);
    }
    let mut data = Vec::new();
    country(&mut data, "country", "DE");
    let second = u32::try_from(data.len()).unwrap();
    country(&mut data, "registered_country", "FR");

    // Two chains of eight bits that share their beginning: 192 is 1100_0000, 198 is 1100_0110.
    let nodes_wanted = [(192_u8, 0_u32), (198, second)];
    let mut nodes: Vec<[Option<u32>; 2]> = vec![[None; 2]];
    let mut leaves = Vec::new();
    for (first_byte, offset) in nodes_wanted {
        let mut node = 0;
        for bit in (1..8).rev() {
            let side = usize::from(first_byte >> bit & 1);
            node = match nodes[node][side] {
                Some(next) => usize::try_from(next).unwrap(),
                None => {
                    nodes.push([None; 2]);
                    nodes[node][side] = Some(u32::try_from(nodes.len() - 1).unwrap());
                    nodes.len() - 1
                }
            };
        }
        leaves.push((node, usize::from(first_byte & 1), offset));
    }
    let count = u32::try_from(nodes.len()).unwrap();
    for (node, side, offset) in leaves {
        nodes[node][side] = Some(count + 16 + offset);
    }
    let mut file = Vec::new();
    for sides in nodes {
        for side in sides {
            file.extend(&side.unwrap_or(count).to_be_bytes()[1..]);
        }
    }
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    file.push(0b111_01001);
    let number = |file: &mut Vec<u8>, key: &str, number: u16| {
        text(file, key);
        file.push(0b101_00010);
        file.extend(number.to_be_bytes());
    };
    number(&mut file, "binary_format_major_version", 2);
    number(&mut file, "binary_format_minor_version", 0);
    text(&mut file, "build_epoch");
    file.extend([0b000_00001, 2, 1]);
    text(&mut file, "database_type");
    text(&mut file, "Test-Country");
    text(&mut file, "description");
    file.push(0b111_00001);
    text(&mut file, "en");
    text(&mut file, "Two countries");
    number(&mut file, "ip_version", 4);
    text(&mut file, "languages");
    file.extend([0b000_00000, 4]);
    text(&mut file, "node_count");
    file.extend([0b110_00100]);
    file.extend(count.to_be_bytes());
    number(&mut file, "record_size", 24);
    fs::File::create(path).unwrap().write_all(&file).unwrap();
}

#[test]
fn countries_are_those_of_the_real_address() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("countries.mmdb");
    write_countries(&file);
    let lines = |more: &str| {
        format!("[network]\nforwarders = [\"127.0.0.1\"]\ncountries_file = \"{}\"\n{more}\n", file.display())
    };
    let (_upstream, gateway_) = gateway(&lines("countries_deny = [\"FR\"]"));
    ask(&gateway_, b"", Some("192.0.2.1")).unwrap().ok();
    ask(&gateway_, b"", Some("203.0.113.1")).unwrap().ok();
    ask(&gateway_, b"", Some("198.51.100.1")).unwrap().refused(403, "unsupported_country_region_territory");

    let (_upstream, gateway_) = gateway(&lines("countries_allow = [\"DE\"]\nunknown_country = \"deny\""));
    ask(&gateway_, b"", Some("192.0.2.1")).unwrap().ok();
    for elsewhere in ["198.51.100.1", "203.0.113.1"] {
        let reply = ask(&gateway_, b"", Some(elsewhere)).unwrap();
        reply.refused(403, "unsupported_country_region_territory");
    }
}

#[test]
fn a_damaged_file_of_countries_is_refused_by_check_start_and_reload_and_met_by_no_request() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("countries.mmdb");
    write_countries(&file);
    let lines = format!(
        "[network]\nforwarders = [\"127.0.0.1\"]\ncountries_file = \"{}\"\ncountries_deny = [\"FR\"]\n",
        file.display()
    );
    let (_upstream, mut gateway) = gateway(&lines);
    // The record of France is cut short: what is before it can be looked up, and whoever comes from there would meet it.
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.windows(2).rposition(|text| text == b"FR").unwrap();
    bytes[last - 1] = 0b010_11100;
    fs::write(&file, &bytes).unwrap();
    let told = gateway.cli.fails(3, &["check"])["message"].as_str().unwrap().to_owned();
    assert!(told.starts_with("`countries_file`: ") && told.contains("it is damaged: "), "{told}");
    assert!(
        told.contains("weir.toml:") && told.contains("countries_file = ") && told.contains("^^^"),
        "{told}"
    );
    signal("HUP", gateway.process_id());
    wait_for("the reload to be refused", Duration::from_secs(10), || {
        gateway.log().contains("the one before stays in force").then_some(())
    });
    assert!(gateway.log().contains("it is damaged"), "the log tells the same");
    ask(&gateway, b"", Some("192.0.2.1")).unwrap().ok();
    ask(&gateway, b"", Some("198.51.100.1")).unwrap().refused(403, "unsupported_country_region_territory");
    assert!(gateway.stop().unwrap().success());
    assert_eq!(gateway.cli.fails(3, &["serve"])["message"], told);
    write_countries(&file);
    gateway.serve();
    ask(&gateway, b"", Some("198.51.100.1")).unwrap().refused(403, "unsupported_country_region_territory");
}
