//! Why a request is refused, and the one table of what the client is told.
//!
//! Promises: each [`Kind`] has one status, type, code and retry advice; it is the metric label, too.
//! Refuses to know: which stage refuses, and how an answer is written.

use crate::ids::RequestId;
use std::fmt;
use std::time::Duration;

/// The kinds of refusal. Statuses, types and codes follow the OpenAI API where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the wire table below describes each")]
pub enum Kind {
    InvalidJson,
    DuplicateKey,
    TooDeep,
    InvalidValue,
    UnsupportedParameter,
    TokensExceedLimit,
    ContextLengthExceeded,
    /// A provider's own 400 whose code is not one of ours.
    UpstreamRejected,
    InvalidApiKey,
    CreditBalanceExhausted,
    KeySpendLimitReached,
    CreditInFlight,
    AccountSuspended,
    ModelNotAllowed,
    AddressNotAllowed,
    UnsupportedCountry,
    ModelNotFound,
    UnknownUrl,
    MethodNotAllowed,
    RequestTimeout,
    RequestInProgress,
    RequestAlreadyDone,
    RequestTooLarge,
    UnsupportedMediaType,
    HeadersTooLarge,
    RateLimitExceeded,
    InternalError,
    UpstreamError,
    NoCapacity,
    UpstreamTimeout,
}

/// What a kind looks like to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// HTTP status.
    pub status: u16,
    /// `error.type`.
    pub r#type: &'static str,
    /// `error.code`; `None` is JSON null.
    pub code: Option<&'static str>,
    /// `x-should-retry`, which the official SDKs obey before the status; `None` sends no header.
    pub should_retry: Option<bool>,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 30] = [
        Kind::InvalidJson,
        Kind::DuplicateKey,
        Kind::TooDeep,
        Kind::InvalidValue,
        Kind::UnsupportedParameter,
        Kind::TokensExceedLimit,
        Kind::ContextLengthExceeded,
        Kind::UpstreamRejected,
        Kind::InvalidApiKey,
        Kind::CreditBalanceExhausted,
        Kind::KeySpendLimitReached,
        Kind::CreditInFlight,
        Kind::AccountSuspended,
        Kind::ModelNotAllowed,
        Kind::AddressNotAllowed,
        Kind::UnsupportedCountry,
        Kind::ModelNotFound,
        Kind::UnknownUrl,
        Kind::MethodNotAllowed,
        Kind::RequestTimeout,
        Kind::RequestInProgress,
        Kind::RequestAlreadyDone,
        Kind::RequestTooLarge,
        Kind::UnsupportedMediaType,
        Kind::HeadersTooLarge,
        Kind::RateLimitExceeded,
        Kind::InternalError,
        Kind::UpstreamError,
        Kind::NoCapacity,
        Kind::UpstreamTimeout,
    ];

    /// The wire table.
    pub const fn wire(self) -> Wire {
        const INVALID: &str = "invalid_request_error";
        const QUOTA: &str = "insufficient_quota";
        const SERVER: &str = "server_error";
        const NO: Option<bool> = Some(false);
        let (status, r#type, code, should_retry) = match self {
            Kind::InvalidJson => (400, INVALID, Some("invalid_json"), NO),
            Kind::DuplicateKey => (400, INVALID, Some("duplicate_key"), NO),
            Kind::TooDeep => (400, INVALID, Some("too_deep"), NO),
            Kind::InvalidValue => (400, INVALID, Some("invalid_value"), NO),
            Kind::UnsupportedParameter => (400, INVALID, Some("unsupported_parameter"), NO),
            Kind::TokensExceedLimit => (400, INVALID, Some("tokens_exceed_limit"), NO),
            Kind::ContextLengthExceeded => (400, INVALID, Some("context_length_exceeded"), NO),
            Kind::UpstreamRejected => (400, INVALID, None, NO),
            Kind::InvalidApiKey => (401, INVALID, Some("invalid_api_key"), NO),
            Kind::CreditBalanceExhausted => (402, QUOTA, Some("credit_balance_exhausted"), NO),
            Kind::KeySpendLimitReached => (402, QUOTA, Some("key_spend_limit_reached"), NO),
            Kind::CreditInFlight => (402, QUOTA, Some("credit_in_flight"), Some(true)),
            Kind::AccountSuspended => (403, INVALID, Some("account_suspended"), NO),
            Kind::ModelNotAllowed => (403, INVALID, Some("model_not_allowed"), NO),
            Kind::AddressNotAllowed => (403, INVALID, Some("address_not_allowed"), NO),
            Kind::UnsupportedCountry => (403, INVALID, Some("unsupported_country_region_territory"), NO),
            Kind::ModelNotFound => (404, INVALID, Some("model_not_found"), NO),
            Kind::UnknownUrl => (404, INVALID, Some("unknown_url"), NO),
            Kind::MethodNotAllowed => (405, INVALID, Some("method_not_allowed"), NO),
            Kind::RequestTimeout => (408, INVALID, Some("request_timeout"), NO),
            Kind::RequestInProgress => (409, INVALID, Some("request_in_progress"), Some(true)),
            Kind::RequestAlreadyDone => (409, INVALID, Some("request_already_done"), NO),
            Kind::RequestTooLarge => (413, INVALID, Some("request_too_large"), NO),
            Kind::UnsupportedMediaType => (415, INVALID, Some("unsupported_media_type"), NO),
            Kind::HeadersTooLarge => (431, INVALID, Some("headers_too_large"), NO),
            Kind::RateLimitExceeded => (429, "rate_limit_error", Some("rate_limit_exceeded"), None),
            Kind::InternalError => (500, SERVER, Some("internal_error"), None),
            Kind::UpstreamError => (502, SERVER, Some("upstream_error"), None),
            Kind::NoCapacity => (503, SERVER, Some("no_capacity"), None),
            Kind::UpstreamTimeout => (504, SERVER, Some("upstream_timeout"), None),
        };
        Wire { status, r#type, code, should_retry }
    }

    /// The metric label: the code where there is one.
    pub const fn as_str(self) -> &'static str {
        match self.wire().code {
            Some(code) => code,
            None => "upstream_rejected",
        }
    }
}

/// A bound that a request ran into: whose it is, and of what. It is the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it; the configuration and the README describe each")]
pub enum Limit {
    AccountRequests,
    AccountTokens,
    AccountConcurrent,
    KeyRequests,
    KeyTokens,
    KeyConcurrent,
    KeySpend,
    AddressRequests,
    AddressFailures,
    ProcessRequests,
    ProcessConcurrent,
    BufferedBytes,
    KeyLookups,
    LedgerBacklog,
}

impl Limit {
    /// Every limit, in the order of its declaration.
    pub const ALL: [Limit; 14] = [
        Limit::AccountRequests,
        Limit::AccountTokens,
        Limit::AccountConcurrent,
        Limit::KeyRequests,
        Limit::KeyTokens,
        Limit::KeyConcurrent,
        Limit::KeySpend,
        Limit::AddressRequests,
        Limit::AddressFailures,
        Limit::ProcessRequests,
        Limit::ProcessConcurrent,
        Limit::BufferedBytes,
        Limit::KeyLookups,
        Limit::LedgerBacklog,
    ];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Limit::AccountRequests => "account_requests_per_minute",
            Limit::AccountTokens => "account_tokens_per_minute",
            Limit::AccountConcurrent => "account_concurrent_requests",
            Limit::KeyRequests => "key_requests_per_minute",
            Limit::KeyTokens => "key_tokens_per_minute",
            Limit::KeyConcurrent => "key_concurrent_requests",
            Limit::KeySpend => "key_spend",
            Limit::AddressRequests => "address_requests_per_second",
            Limit::AddressFailures => "address_failures_per_second",
            Limit::ProcessRequests => "process_requests_per_second",
            Limit::ProcessConcurrent => "process_concurrent_requests",
            Limit::BufferedBytes => "buffered_body_bytes",
            Limit::KeyLookups => "key_lookups",
            Limit::LedgerBacklog => "ledger_backlog",
        }
    }
}

/// A refusal: its kind, what the client may read, and what only the log may.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Status, type and code.
    pub kind: Kind,
    /// `error.message`, in our words, with what to do.
    pub public: String,
    /// `error.param`: the request's key at fault.
    pub param: Option<String>,
    /// Wait this long before the next try: sent as `Retry-After` (whole seconds, at least 1) and `retry-after-ms`.
    pub retry_after: Option<Duration>,
    /// The request that has the idempotency key: sent as `x-weir-original-request-id`.
    pub original: Option<RequestId>,
    /// The limit that was hit, where it was one.
    pub limit: Option<Limit>,
    /// For the log alone. Never quotes a body, a key or a provider's credential.
    pub internal: Option<String>,
}

impl Refused {
    /// A refusal of this kind with the text that the client reads.
    pub fn new(kind: Kind, public: impl Into<String>) -> Self {
        Refused {
            kind,
            public: public.into(),
            param: None,
            retry_after: None,
            original: None,
            limit: None,
            internal: None,
        }
    }

    /// Names the request's key at fault.
    #[must_use]
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Tells when to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Names the request that has the idempotency key.
    #[must_use]
    pub fn original(mut self, request: RequestId) -> Self {
        self.original = Some(request);
        self
    }

    /// Names the limit that was hit.
    #[must_use]
    pub fn limit(mut self, limit: Limit) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Adds what only the log may read.
    #[must_use]
    pub fn internal(mut self, text: impl fmt::Display) -> Self {
        self.internal = Some(text.to_string());
        self
    }

    /// Our fault: the client learns no more than that.
    pub fn bug(internal: impl fmt::Display) -> Self {
        Refused::new(Kind::InternalError, "The gateway failed on this request; it was not billed.")
            .internal(internal)
    }
}

impl fmt::Display for Refused {
    /// For the log: kind, then the internal text where there is one, else the public one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.as_str(), self.internal.as_deref().unwrap_or(&self.public))
    }
}

impl std::error::Error for Refused {}
