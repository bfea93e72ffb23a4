//! What requests come to, told from what happened to them and not from what the journal has.

use weir::clock::UnixMicros;
use weir::ids::{AccountId, KeyId, ModelName, ProviderName, RequestId};
use weir::ledger::journal::{Progress, Sent, Settle};
use weir::money::Picos;
use weir::store::RequestRow;
use weir::usage::{Outcome, Usage, UsageSource};

#[derive(Clone, Debug)]
pub(super) enum Event {
    Sent(Sent),
    Failed,
    Progress(Progress),
    Settled(RequestRow),
}

/// What a prefix of the journal makes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bill {
    Nothing,
    Died { sent: Sent, progress: Option<Progress> },
    Settled(RequestRow),
}

impl Bill {
    /// After these events of one request.
    pub(super) fn of(events: impl Iterator<Item = Event>) -> Bill {
        let mut bill = Bill::Nothing;
        for event in events {
            bill = match (event, bill) {
                (Event::Sent(sent), Bill::Died { progress, .. }) => Bill::Died { sent, progress },
                (Event::Sent(sent), Bill::Nothing | Bill::Settled(_)) => Bill::Died { sent, progress: None },
                (Event::Failed, _) => Bill::Nothing,
                (Event::Progress(progress), Bill::Died { sent, .. }) => {
                    Bill::Died { sent, progress: Some(progress) }
                }
                (Event::Progress(_), bill @ (Bill::Nothing | Bill::Settled(_))) => bill,
                (Event::Settled(row), _) => Bill::Settled(row),
            };
        }
        bill
    }

    /// The row that it makes.
    pub(super) fn row(self, seq: u64) -> Option<RequestRow> {
        let (sent, progress) = match self {
            Bill::Nothing => return None,
            Bill::Settled(row) => return Some(row),
            Bill::Died { sent, progress } => (sent, progress),
        };
        let input = progress.map_or(sent.input_tokens, |progress| progress.input_tokens);
        let output = progress.map_or(0, |progress| progress.output_tokens);
        let price = |units: u64, price: i64| i64::try_from(units).unwrap() * price;
        let cost = price(input, sent.input_price) + price(output, sent.output_price);
        let mut died = row_of(&sent, seq, cost, cost);
        died.usage = Usage { input, output, ..Usage::default() };
        (died.outcome, died.source) = (Outcome::GatewayDied, UsageSource::Counted);
        died.status = if progress.is_some() { 200 } else { 500 };
        (died.latency_ms, died.ttft_ms) = (0, None);
        Some(died)
    }
}

/// What a request that was sent comes to.
pub(super) fn row_of(sent: &Sent, seq: u64, cost: i64, over: i64) -> RequestRow {
    RequestRow {
        seq,
        request_id: RequestId::from_slice(&sent.request_id).unwrap(),
        account: AccountId::from_slice(&sent.account).unwrap(),
        key: KeyId::from_slice(&sent.key).unwrap(),
        created_at: UnixMicros(sent.created_at),
        client_request_id: sent.client_request_id.clone(),
        model: ModelName::from(sent.model.as_str()),
        provider: ProviderName::from(sent.provider.as_str()),
        upstream_model: sent.upstream_model.clone(),
        service_tier: sent.service_tier.clone(),
        status: 200,
        outcome: Outcome::Completed,
        stream: sent.stream,
        usage: Usage::default(),
        source: UsageSource::Reported,
        price_version: sent.price_version,
        cost: Picos(cost),
        over: Picos(over),
        latency_ms: 12,
        ttft_ms: Some(5),
    }
}

/// The same as the journal keeps it.
pub(super) fn settle_of(row: &RequestRow) -> Settle {
    let classes = (0_u8..).zip(row.usage.by_class());
    Settle {
        request_id: row.request_id.0.into_bytes(),
        account: row.account.0.into_bytes(),
        key: row.key.0.into_bytes(),
        created_at: row.created_at.0,
        client_request_id: row.client_request_id.clone(),
        model: row.model.as_str().to_owned(),
        provider: row.provider.as_str().to_owned(),
        upstream_model: row.upstream_model.clone(),
        service_tier: row.service_tier.clone(),
        status: row.status,
        outcome: 0,
        stream: row.stream,
        usage: classes.map(|(at, (_, units))| (at, units)).filter(|(_, units)| *units > 0).collect(),
        is_reported: true,
        price_version: row.price_version,
        cost_pico: row.cost.0,
        over_pico: row.over.0,
        latency_ms: row.latency_ms,
        ttft_ms: row.ttft_ms,
    }
}
