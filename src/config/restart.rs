//! What a server takes from its configuration only when it starts.

use super::{Admin, Auth, Config, Journal, Networks, Server, Store, Telemetry, Tls, Unix};

impl Config {
    /// Gives `next` the values with which this server started wherever it cannot take others while it runs, and tells which of the keys
    /// wait for a restart.
    pub fn keep_started(&self, next: &mut Config) -> Vec<&'static str> {
        let mut waiting = Vec::new();
        // Every key is named here, so that a new one is thought about.
        let Server {
            listen,
            plain_http: _,
            threads,
            max_connections: _,
            max_connections_per_address: _,
            begin_timeout: _,
            head_timeout: _,
            max_requests: _,
            max_requests_per_s: _,
            max_requests_per_s_per_address: _,
            max_body_bytes: _,
            max_buffered_bytes: _,
            body_timeout: _,
            body_min_bytes_per_s: _,
            keepalive_timeout,
            write_timeout: _,
            max_answer_bytes: _,
            max_event_bytes: _,
            stream_comment_every: _,
            client_gone_timeout: _,
            client_gone_max_bytes: _,
            client_gone_max_requests: _,
            stop_delay,
            drain_timeout: _,
            upgrade_timeout,
            max_stale,
            max_stream_time,
        } = &self.server;
        let server = &mut next.server;
        keep(listen, &mut server.listen, "[server] listen", &mut waiting);
        keep(threads, &mut server.threads, "[server] threads", &mut waiting);
        if *keepalive_timeout != server.keepalive_timeout {
            waiting.push("[server] keepalive_timeout_ms for HTTP/2");
        }
        keep(stop_delay, &mut server.stop_delay, "[server] stop_delay_ms", &mut waiting);
        let upgrade_timeout_ms = "[server] upgrade_timeout_ms";
        keep(upgrade_timeout, &mut server.upgrade_timeout, upgrade_timeout_ms, &mut waiting);
        keep(max_stale, &mut server.max_stale, "[server] max_stale_ms", &mut waiting);
        let max_stream_time_ms = "[server] max_stream_time_ms";
        keep(max_stream_time, &mut server.max_stream_time, max_stream_time_ms, &mut waiting);
        let Tls { listen } = &self.tls;
        keep(listen, &mut next.tls.listen, "[tls] listen", &mut waiting);
        let Networks { proxy_protocol, forwarders: _, forwarder_header: _, allow: _, deny: _, countries: _ } =
            &self.networks;
        let networks = &mut next.networks;
        keep(proxy_protocol, &mut networks.proxy_protocol, "[network] proxy_protocol", &mut waiting);
        let Unix { listen, mode } = &self.unix;
        keep(listen, &mut next.unix.listen, "[unix] listen", &mut waiting);
        keep(mode, &mut next.unix.mode, "[unix] mode", &mut waiting);
        let Admin { listen } = &self.admin;
        keep(listen, &mut next.admin.listen, "[admin] listen", &mut waiting);
        let Store { url } = &self.store;
        keep(url, &mut next.store.url, "[store] url", &mut waiting);
        let Auth { pepper, service_tiers: _, max_failures_per_s: _, max_failures_per_s_per_address: _ } =
            &self.auth;
        keep(pepper, &mut next.auth.pepper, "[auth] pepper", &mut waiting);
        let Journal { dir, durability, max_bytes, keep_time, keep_bytes } = &self.journal;
        keep(dir, &mut next.journal.dir, "[journal] dir", &mut waiting);
        keep(durability, &mut next.journal.durability, "[journal] durability", &mut waiting);
        keep(max_bytes, &mut next.journal.max_bytes, "[journal] max_bytes", &mut waiting);
        keep(keep_time, &mut next.journal.keep_time, "[journal] keep_ms", &mut waiting);
        keep(keep_bytes, &mut next.journal.keep_bytes, "[journal] keep_bytes", &mut waiting);
        let Telemetry { otlp_endpoint, traceparent } = &self.telemetry;
        let next = &mut next.telemetry;
        keep(otlp_endpoint, &mut next.otlp_endpoint, "[telemetry] otlp_endpoint", &mut waiting);
        keep(traceparent, &mut next.traceparent, "[telemetry] traceparent", &mut waiting);
        waiting
    }
}

fn keep<T: PartialEq + Clone>(started: &T, next: &mut T, key: &'static str, waiting: &mut Vec<&'static str>) {
    if started != next {
        next.clone_from(started);
        waiting.push(key);
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use std::time::Duration;

    #[test]
    fn what_waits_for_a_restart_is_named_and_the_rest_is_taken() {
        let started = Config::default();
        let mut next = Config::default();
        assert_eq!(started.keep_started(&mut next), Vec::<&str>::new());
        next.server.threads = 7;
        next.server.max_body_bytes = 5000;
        next.server.max_stale = Duration::from_secs(1);
        next.server.keepalive_timeout = Duration::from_secs(1);
        next.store.url = "sqlite:other.db".to_owned();
        next.journal.dir = "elsewhere".into();
        let waiting = [
            "[server] threads",
            "[server] keepalive_timeout_ms for HTTP/2",
            "[server] max_stale_ms",
            "[store] url",
            "[journal] dir",
        ];
        assert_eq!(started.keep_started(&mut next), waiting);
        assert_eq!((next.server.threads, next.server.max_body_bytes), (0, 5000));
        assert_eq!((&next.store, &next.journal), (&started.store, &started.journal));
        assert_eq!(next.server.keepalive_timeout, Duration::from_secs(1));
    }
}
