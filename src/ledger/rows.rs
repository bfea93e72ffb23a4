//! A settlement as the journal keeps it, and as the database does.

use super::journal::{Progress, Sent, Settle};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, KeyId, ModelName, ProviderName, RequestId};
use crate::money::Picos;
use crate::store::RequestRow;
use crate::usage::{Class, Outcome, Usage, UsageSource};
use uuid::Uuid;

/// The row of a settlement. `None` for numbers that no version of this program wrote.
pub(super) fn row(seq: u64, settle: &Settle) -> Option<RequestRow> {
    let outcome = *Outcome::ALL.get(usize::from(settle.outcome))?;
    Some(RequestRow {
        seq,
        request_id: RequestId(Uuid::from_bytes(settle.request_id)),
        account: AccountId(Uuid::from_bytes(settle.account)),
        key: KeyId(Uuid::from_bytes(settle.key)),
        created_at: UnixMicros(settle.created_at),
        client_request_id: settle.client_request_id.clone(),
        model: ModelName::from(settle.model.as_str()),
        provider: ProviderName::from(settle.provider.as_str()),
        upstream_model: settle.upstream_model.clone(),
        service_tier: settle.service_tier.clone(),
        status: settle.status,
        outcome,
        stream: settle.stream,
        usage: usage(&settle.usage)?,
        source: if settle.is_reported { UsageSource::Reported } else { UsageSource::Counted },
        price_version: settle.price_version,
        cost: Picos(settle.cost_pico),
        over: Picos(settle.over_pico),
        latency_ms: settle.latency_ms,
        ttft_ms: settle.ttft_ms,
    })
}

/// The settlement that is the row.
pub(super) fn settle(row: &RequestRow) -> Settle {
    let at = Outcome::ALL.iter().position(|outcome| *outcome == row.outcome).unwrap_or(0);
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
        outcome: u8::try_from(at).unwrap_or(0),
        stream: row.stream,
        usage: classes.filter(|(_, (_, units))| *units > 0).map(|(at, (_, units))| (at, units)).collect(),
        is_reported: row.source == UsageSource::Reported,
        price_version: row.price_version,
        cost_pico: row.cost.0,
        over_pico: row.over.0,
        latency_ms: row.latency_ms,
        ttft_ms: row.ttft_ms,
    }
}

/// The row of a request that was sent and whose process died: its input, and the output that was last noted.
///
/// All of it counts as above the lease: how much the lease still covered is not known, and the account is charged the same either way.
pub(super) fn died(seq: u64, sent: &Sent, progress: Option<&Progress>) -> RequestRow {
    let input = progress.map_or(sent.input_tokens, |progress| progress.input_tokens);
    let output = progress.map_or(0, |progress| progress.output_tokens);
    let part = |units: u64, price: i64| i128::from(units) * i128::from(price);
    let cost =
        i64::try_from(part(input, sent.input_price) + part(output, sent.output_price)).unwrap_or(i64::MAX);
    RequestRow {
        seq,
        request_id: RequestId(Uuid::from_bytes(sent.request_id)),
        account: AccountId(Uuid::from_bytes(sent.account)),
        key: KeyId(Uuid::from_bytes(sent.key)),
        created_at: UnixMicros(sent.created_at),
        client_request_id: sent.client_request_id.clone(),
        model: ModelName::from(sent.model.as_str()),
        provider: ProviderName::from(sent.provider.as_str()),
        upstream_model: sent.upstream_model.clone(),
        service_tier: sent.service_tier.clone(),
        status: if progress.is_some() { 200 } else { 500 },
        outcome: Outcome::GatewayDied,
        stream: sent.stream,
        usage: Usage { input, output, ..Usage::default() },
        source: UsageSource::Counted,
        price_version: sent.price_version,
        cost: Picos(cost),
        over: Picos(cost),
        latency_ms: 0,
        ttft_ms: None,
    }
}

fn usage(classes: &[(u8, u64)]) -> Option<Usage> {
    let mut usage = Usage::default();
    for (at, units) in classes {
        *usage.class_mut(*Class::ALL.get(usize::from(*at))?) = *units;
    }
    Some(usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::KeyId;

    #[test]
    fn a_row_comes_out_of_the_journal_as_it_went_in() {
        for (at, outcome) in Outcome::ALL.into_iter().enumerate() {
            let mut usage = Usage { input: 3, calls: 1, ..Usage::default() };
            usage.reasoning = at as u64;
            let row = RequestRow {
                seq: 9,
                request_id: RequestId::new(),
                account: AccountId::new(),
                key: KeyId::new(),
                created_at: UnixMicros(5),
                client_request_id: Some("theirs".to_owned()),
                model: ModelName::from("m"),
                provider: ProviderName::from("p"),
                upstream_model: "u".to_owned(),
                service_tier: None,
                status: 200,
                outcome,
                stream: true,
                usage,
                source: UsageSource::Reported,
                price_version: 4,
                cost: Picos(77),
                over: Picos(7),
                latency_ms: 12,
                ttft_ms: Some(3),
            };
            assert_eq!(super::row(9, &settle(&row)), Some(row));
        }
    }
}
