//! The price book's rows.

use super::changes::{self, Subject, signed};
use super::open::transact;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::money::PricePicos;
use crate::usage::Class;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

/// A stored price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceRow {
    /// The import that it came with.
    pub version: u64,
    /// The model, as the catalogue calls it.
    pub model: String,
    /// The service tier that it is for; `None` is the base tier.
    pub service_tier: Option<String>,
    /// It holds for requests with more input tokens than this.
    pub above_input_tokens: u64,
    /// What a unit is.
    pub class: Class,
    /// For a unit.
    pub price: PricePicos,
    /// From when on it holds.
    pub effective_at: UnixMicros,
}

/// A price to be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in PriceRow")]
pub struct NewPrice {
    pub model: String,
    pub service_tier: Option<String>,
    pub above_input_tokens: u64,
    pub class: Class,
    pub price: PricePicos,
}

impl Store {
    /// Every price ever imported, in order of import.
    pub async fn price_rows(&self) -> Result<Vec<PriceRow>, StoreError> {
        transact!(self.reading(), |tx| {
            let rows = sqlx::query(
                "SELECT p.*, v.effective_at FROM price p JOIN price_version v ON v.version = p.version ORDER BY p.version",
            )
            .fetch_all(&mut **tx)
            .await?;
            rows.iter().map(price).collect()
        })
    }

    /// Adds prices to the book as one version, and tells its number.
    pub async fn import_prices(
        &self,
        prices: &[NewPrice],
        effective_at: UnixMicros,
        at: UnixMicros,
    ) -> Result<u64, StoreError> {
        transact!(self.writing(), |tx| { import(tx, prices, effective_at, at).await })
    }

    /// Adds prices to an empty book, and tells whether it was empty.
    pub async fn seed_prices(&self, prices: &[NewPrice], at: UnixMicros) -> Result<bool, StoreError> {
        transact!(self.writing(), |tx| {
            let imports: i64 =
                sqlx::query_scalar("SELECT count(*) FROM price_version").fetch_one(&mut **tx).await?;
            if imports > 0 {
                return Ok(false);
            }
            import(tx, prices, at, at).await?;
            Ok(true)
        })
    }
}

async fn import(
    tx: &mut Transaction<'static, Sqlite>,
    prices: &[NewPrice],
    effective_at: UnixMicros,
    at: UnixMicros,
) -> Result<u64, StoreError> {
    let version: i64 = sqlx::query_scalar(
        "INSERT INTO price_version (version, effective_at, imported_at) \
         SELECT coalesce(max(version), 0) + 1, ?, ? FROM price_version RETURNING version",
    )
    .bind(effective_at.0)
    .bind(at.0)
    .fetch_one(&mut **tx)
    .await?;
    for new in prices {
        sqlx::query(
            "INSERT INTO price (version, model, service_tier, above_input_tokens, class, price_pico) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(version)
        .bind(&new.model)
        .bind(new.service_tier.as_deref().unwrap_or(""))
        .bind(signed(new.above_input_tokens))
        .bind(new.class.as_str())
        .bind(new.price.0)
        .execute(&mut **tx)
        .await?;
    }
    changes::note(tx, Subject::Prices).await?;
    u64::try_from(version).map_err(StoreError::damaged)
}

fn price(row: &SqliteRow) -> Result<PriceRow, StoreError> {
    let unsigned = |name: &str| u64::try_from(row.get::<i64, _>(name)).map_err(StoreError::damaged);
    let class: &str = row.get("class");
    let service_tier: &str = row.get("service_tier");
    Ok(PriceRow {
        version: unsigned("version")?,
        model: row.get("model"),
        service_tier: (!service_tier.is_empty()).then(|| service_tier.to_owned()),
        above_input_tokens: unsigned("above_input_tokens")?,
        class: Class::parse(class)
            .ok_or_else(|| StoreError::damaged(format!("the price class {class:?}")))?,
        price: PricePicos(row.get("price_pico")),
        effective_at: UnixMicros(row.get("effective_at")),
    })
}
