//! One column against its twin.

use super::ddl;
use super::difference::DifferenceKind;
use super::tables::Twin;
use crate::model::{quote_identifier, quote_literal};
use crate::schema::catalog::Column;

/// Every column of the source, then those that only the target has.
pub(super) fn compare(twin: &mut Twin<'_>) {
    let (source, target) = (twin.source, twin.target);
    for column in &source.columns {
        match target.column(&column.name) {
            Some(other) => compare_column(twin, column, other),
            None => {
                let definition = ddl::column_definition(column, twin.source_design);
                let remedy = format!("ALTER TABLE {} ADD COLUMN {definition};", twin.quoted());
                twin.found(Some(column), DifferenceKind::MissingColumn, remedy);
            }
        }
    }
    for extra in target.columns.iter().filter(|column| source.column(&column.name).is_none()) {
        let filled = extra.default.is_some() || extra.identity.is_some() || extra.generated.is_some();
        let (table, name) = (twin.quoted(), quote_identifier(&extra.name));
        if extra.not_null && !filled {
            let alter = format!("ALTER TABLE {table} ALTER COLUMN {name}");
            let remedy = format!("{alter} DROP NOT NULL;\n-- or: {alter} SET DEFAULT …;");
            twin.found(Some(extra), DifferenceKind::ExtraColumnNotNull, remedy);
        } else {
            let remedy = format!("-- if nobody needs it:\nALTER TABLE {table} DROP COLUMN {name};");
            twin.found(Some(extra), DifferenceKind::ExtraColumn, remedy);
        }
    }
}

fn compare_column(twin: &mut Twin<'_>, source: &Column, target: &Column) {
    let (table, name) = (twin.quoted(), quote_identifier(&source.name));
    let alter = |change: &str| format!("ALTER TABLE {table} ALTER COLUMN {name} {change};");
    if source.type_text != target.type_text {
        let kind = DifferenceKind::Type { source: source.type_text.clone(), target: target.type_text.clone() };
        twin.found(Some(source), kind, alter(&format!("TYPE {}", source.type_text)));
    }
    compare_labels(twin, source);
    if source.collation != target.collation {
        let collation = source.collation.as_deref().unwrap_or("\"default\"");
        let remedy =
            format!("-- if the order matters:\n{}", alter(&format!("TYPE {} COLLATE {collation}", source.type_text)));
        let kind = DifferenceKind::Collation { source: source.collation.clone(), target: target.collation.clone() };
        twin.found(Some(source), kind, remedy);
    }
    match (source.generated, target.generated) {
        (None, Some(_)) => return twin.found(Some(source), DifferenceKind::Generated, alter("DROP EXPRESSION")),
        (Some(_), None) => {
            let definition = ddl::column_definition(source, twin.source_design);
            let remedy = format!("ALTER TABLE {table} DROP COLUMN {name}, ADD COLUMN {definition};");
            return twin.found(Some(source), DifferenceKind::NotGenerated, remedy);
        }
        (Some(_), Some(_)) => return compare_expression(twin, source, target),
        (None, None) => {}
    }
    match (source.not_null, target.not_null) {
        (false, true) => twin.found(Some(source), DifferenceKind::NotNull, alter("DROP NOT NULL")),
        (true, false) => twin.found(Some(source), DifferenceKind::Nullable, alter("SET NOT NULL")),
        (true, true) | (false, false) => {}
    }
    compare_filling(twin, source, target);
}

fn compare_labels(twin: &mut Twin<'_>, column: &Column) {
    let labels = |design: &crate::schema::TableDesign| design.enum_labels.get(&column.name).cloned();
    let (Some(wanted), Some(there)) = (labels(twin.source_design), labels(twin.target_design)) else { return };
    let missing: Vec<String> = wanted.into_iter().filter(|label| !there.contains(label)).collect();
    if missing.is_empty() {
        return;
    }
    // Of an array the type is written with brackets, its elements' without.
    let of = column.type_text.trim_end_matches("[]");
    let statements: Vec<String> =
        missing.iter().map(|label| format!("ALTER TYPE {of} ADD VALUE {};", quote_literal(label))).collect();
    twin.found(Some(column), DifferenceKind::MissingLabels { labels: missing }, statements.join("\n"));
}

fn compare_expression(twin: &mut Twin<'_>, source: &Column, target: &Column) {
    let written = |column: &Column, design: &crate::schema::TableDesign| {
        let expression = design.expressions.get(&column.name).map(String::as_str).unwrap_or_default();
        column.generated.map(|kind| ddl::generated(kind, expression)).unwrap_or_default()
    };
    let (here, there) = (written(source, twin.source_design), written(target, twin.target_design));
    if here != there {
        let name = quote_identifier(&source.name);
        let definition = ddl::column_definition(source, twin.source_design);
        let remedy = format!(
            "-- see that both say the same, or:\nALTER TABLE {} DROP COLUMN {name}, ADD COLUMN {definition};",
            twin.quoted()
        );
        twin.found(Some(source), DifferenceKind::Expression { source: here, target: there }, remedy);
    }
}

/// What fills the column in when an INSERT leaves it out.
fn compare_filling(twin: &mut Twin<'_>, source: &Column, target: &Column) {
    let (table, name) = (twin.quoted(), quote_identifier(&source.name));
    let alter = |change: &str| format!("ALTER TABLE {table} ALTER COLUMN {name} {change};");
    match (source.identity, target.identity) {
        (Some(here), Some(there)) if here != there => {
            let (source_word, target_word) = (ddl::identity_word(here), ddl::identity_word(there));
            let kind = DifferenceKind::Identity { source: source_word, target: target_word };
            twin.found(Some(source), kind, alter(&format!("SET GENERATED {source_word}")));
        }
        (Some(_), Some(_)) => {}
        (Some(here), None) if target.default.is_none() => {
            let remedy = alter(&format!("ADD GENERATED {} AS IDENTITY", ddl::identity_word(here)));
            twin.found(Some(source), DifferenceKind::MissingIdentity, remedy);
        }
        (Some(here), None) => {
            let kind = DifferenceKind::Identity { source: ddl::identity_word(here), target: "by its default" };
            twin.found(Some(source), kind, "-- see that both count in the same sequence".to_owned());
        }
        (None, Some(there)) => {
            let kind =
                DifferenceKind::Identity { source: "by nothing but its default", target: ddl::identity_word(there) };
            twin.found(Some(source), kind, format!("-- if it is not meant so:\n{}", alter("DROP IDENTITY")));
        }
        (None, None) => compare_defaults(twin, source, target, alter),
    }
}

fn compare_defaults(twin: &mut Twin<'_>, source: &Column, target: &Column, alter: impl Fn(&str) -> String) {
    if source.default == target.default {
        return;
    }
    let remedy = match &source.default {
        Some(default) => alter(&format!("SET DEFAULT {default}")),
        None => alter("DROP DEFAULT"),
    };
    let kind = match (&source.default, &target.default) {
        (Some(default), None) if target.not_null => DifferenceKind::MissingDefault { source: default.clone() },
        (here, there) => DifferenceKind::Default { source: here.clone(), target: there.clone() },
    };
    twin.found(Some(source), kind, remedy);
}
