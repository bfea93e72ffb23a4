//! How a gateway is configured and started.

use super::{Account, Gateway, PRICES, PROVIDER_MODEL};
use crate::support::cli::{Cli, PROVIDER_KEY_VARIABLE};
use crate::support::ports::Port;
use crate::support::prices::price_file;
use crate::support::upstream::Upstream;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::sync::Mutex;

/// What a gateway is started with.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    server: String,
    journal: String,
    rest: String,
    upstreams: Vec<Upstream>,
    credit: Option<String>,
    trusted: Option<String>,
}

impl Builder {
    /// A provider of the OpenAI dialect at a scripted upstream.
    pub(crate) fn provider(mut self, name: &str, upstream: &Upstream) -> Builder {
        self.upstreams.push(upstream.clone());
        self.provider_at(name, upstream.address(), "")
    }

    /// The same with more lines in its table.
    pub(crate) fn provider_with(mut self, name: &str, upstream: &Upstream, lines: &str) -> Builder {
        self.upstreams.push(upstream.clone());
        self.provider_at(name, upstream.address(), lines)
    }

    /// A provider anywhere.
    pub(crate) fn provider_at(self, name: &str, address: SocketAddr, lines: &str) -> Builder {
        self.provider_of_url(name, &format!("http://{address}/v1"), lines)
    }

    /// A provider with this base URL.
    pub(crate) fn provider_of_url(mut self, name: &str, url: &str, lines: &str) -> Builder {
        let _ = write!(
            self.rest,
            "\n[[provider]]\nname = \"{name}\"\ndialect = \"openai\"\nbase_url = \"{url}\"\n\
             api_key = \"env:{PROVIDER_KEY_VARIABLE}\"\n{lines}\n"
        );
        self
    }

    /// A model with its routes: provider and weight.
    pub(crate) fn model(mut self, name: &str, routes: &[(&str, u32)]) -> Builder {
        let route = |(provider, weight): &(&str, u32)| {
            format!("{{ provider = \"{provider}\", model = \"{PROVIDER_MODEL}\", weight = {weight} }}")
        };
        let routes: Vec<String> = routes.iter().map(route).collect();
        self.table_of_model(name, &routes, "");
        self
    }

    /// A model whose providers are asked in this order.
    pub(crate) fn model_in_order(mut self, name: &str, providers: &[&str]) -> Builder {
        let route = |(place, provider): (usize, &&str)| {
            format!("{{ provider = \"{provider}\", model = \"{PROVIDER_MODEL}\", priority = {place} }}")
        };
        let routes: Vec<String> = providers.iter().enumerate().map(route).collect();
        self.table_of_model(name, &routes, "");
        self
    }

    /// A model that thinks in tokens that it does not show.
    pub(crate) fn hidden_reasoning_model(mut self, name: &str, providers: &[(&str, u32)]) -> Builder {
        let route = |(provider, weight): &(&str, u32)| {
            format!("{{ provider = \"{provider}\", model = \"{PROVIDER_MODEL}\", weight = {weight} }}")
        };
        let routes: Vec<String> = providers.iter().map(route).collect();
        self.table_of_model(name, &routes, "hidden_reasoning = true\n");
        self
    }

    fn table_of_model(&mut self, name: &str, routes: &[String], lines: &str) {
        let _ = write!(
            self.rest,
            "\n[[model]]\nname = \"{name}\"\ncontext_tokens = 128000\nmax_output_tokens = 16384\n{lines}routes = [{}]\n",
            routes.join(", ")
        );
    }

    /// All priced models and one without a price, at this provider.
    pub(crate) fn standard_models(self, provider: &str) -> Builder {
        let names = PRICES.iter().map(|(name, _)| *name).chain(["unpriced"]);
        names.fold(self, |builder, name| builder.model(name, &[(provider, 1)]))
    }

    /// What a provider that is not scripted here got and answered is noted here, for the audit.
    pub(crate) fn noted_by(mut self, upstream: &Upstream) -> Builder {
        self.upstreams.push(upstream.clone());
        self
    }

    /// Trusts providers with this certificate, in PEM.
    pub(crate) fn trust(mut self, certificate: &str) -> Builder {
        self.trusted = Some(certificate.to_owned());
        self
    }

    /// More tables.
    pub(crate) fn lines(mut self, lines: &str) -> Builder {
        self.rest.push_str(lines);
        self
    }

    /// More lines in `[server]`.
    pub(crate) fn server(mut self, lines: &str) -> Builder {
        self.server.push_str(lines);
        self.server.push('\n');
        self
    }

    /// More lines in `[journal]`.
    pub(crate) fn journal(mut self, lines: &str) -> Builder {
        self.journal.push_str(lines);
        self.journal.push('\n');
        self
    }

    /// How much the account has, in dollars; 10 where not said.
    pub(crate) fn credit(mut self, usd: &str) -> Builder {
        self.credit = Some(usd.to_owned());
        self
    }

    /// Writes the configuration, imports the prices, makes a funded account with a key, all by the command line, then
    /// serves and waits until the gateway says that it is ready.
    pub(crate) fn start(self) -> Gateway {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (port, admin) = (Port::take(), Port::take());
        let config = directory.path().join("weir.toml");
        fs::write(&config, self.text(port.address(), admin.address())).unwrap();
        let prices = directory.path().join("test-prices.toml");
        fs::write(&prices, price_file()).unwrap();

        let mut cli = Cli::new(directory.path(), Some(&config));
        if let Some(certificate) = &self.trusted {
            let path = directory.path().join("trusted.pem");
            fs::write(&path, certificate).unwrap();
            cli.trust(&path);
        }
        cli.json(&["price", "import", prices.to_str().unwrap()]);
        let mut gateway = Gateway {
            cli,
            port,
            admin,
            upstreams: self.upstreams,
            books: Mutex::default(),
            child: None,
            upgrades: super::upgrade::Upgrades::default(),
            account: Account {
                id: String::new(),
                email: String::new(),
                key: String::new(),
                key_id: String::new(),
            },
            directory,
        };
        gateway.account = gateway.new_account(self.credit.as_deref().unwrap_or("10"));
        gateway.serve();
        gateway
    }

    fn text(&self, listen: SocketAddr, admin: SocketAddr) -> String {
        let mut text = format!("[server]\nlisten = [\"{listen}\"]\nthreads = 1\n{}\n", self.server);
        let _ = write!(text, "[admin]\nlisten = \"{admin}\"\n\n[store]\nurl = \"sqlite:data/weir.db\"\n\n");
        let _ = write!(
            text,
            "[auth]\npepper = \"file:data/pepper\"\n\n[journal]\ndir = \"data/journal\"\n{}\n",
            self.journal
        );
        let _ = writeln!(text, "[[tier]]\nname = \"default\"\nrequests_per_minute = 1000000");
        let _ = writeln!(text, "tokens_per_minute = 1000000000\nconcurrent_requests = 1000");
        text + &self.rest
    }
}
