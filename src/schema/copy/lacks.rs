//! What the source's schema asks for and the target's cluster cannot give. None of it is worth a failed migration: rows
//! go elsewhere, are compressed otherwise, or lose a label that nobody there would read.

use tracing::warn;

use crate::model::quote_identifier;
use crate::schema::Error;
use crate::schema::dump::{Dump, Entry, Setting};
use crate::wire::Session;

/// SQLSTATE of a label whose provider is not loaded ("invalid_parameter_value", `ExecSecLabelStmt`).
const PROVIDER_NOT_LOADED: &str = "22023";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetLacks {
    /// Tablespaces that tables and indexes of the source are in.
    pub tablespaces: Vec<String>,
    /// Columns of the source are compressed with LZ4, and the target's server was built without it or is older.
    pub lz4: bool,
    /// Providers of security labels.
    pub label_providers: Vec<String>,
}

/// Looks at both sides; what is tried on the target is rolled back.
pub async fn target_lacks(source: &Session, target: &Session) -> Result<TargetLacks, Error> {
    Ok(TargetLacks {
        tablespaces: tablespaces(source, target).await?,
        lz4: lz4(source, target).await?,
        label_providers: label_providers(source, target).await?,
    })
}

async fn tablespaces(source: &Session, target: &Session) -> Result<Vec<String>, Error> {
    let doing = || Error::query("read the tablespaces");
    let used = "SELECT DISTINCT t.spcname::text FROM pg_catalog.pg_class c
                JOIN pg_catalog.pg_tablespace t ON t.oid = c.reltablespace WHERE c.oid >= 16384 ORDER BY 1";
    let used: Vec<String> = source.query(used, &[]).await.map_err(doing())?.iter().map(|row| row.get(0)).collect();
    let sql = "SELECT spcname::text FROM pg_catalog.pg_tablespace WHERE spcname = ANY ($1)";
    let rows = target.query(sql, &[&used]).await.map_err(doing())?;
    let there: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(used.into_iter().filter(|name| !there.contains(name)).collect())
}

async fn lz4(source: &Session, target: &Session) -> Result<bool, Error> {
    if source.server_version_num() < 140_000 {
        return Ok(false);
    }
    let doing = || Error::query("read how columns are compressed");
    let used = "SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attcompression = 'l' AND attrelid >= 16384)";
    let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_settings
                                WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals))";
    let used: bool = source.query_one(used, &[]).await.map_err(doing())?.get(0);
    let there: bool = target.query_one(there, &[]).await.map_err(doing())?.get(0);
    Ok(used && !there)
}

/// No catalog lists the providers that are loaded, so each is asked for by taking a label off that is not there.
async fn label_providers(source: &Session, target: &Session) -> Result<Vec<String>, Error> {
    let sql = "SELECT DISTINCT provider FROM pg_catalog.pg_seclabel ORDER BY 1";
    let rows = source.query(sql, &[]).await.map_err(Error::query("read the security labels"))?;
    let mut missing = Vec::new();
    for row in rows {
        let provider: String = row.get(0);
        let name = quote_identifier(&provider);
        let sql = format!("BEGIN; SECURITY LABEL FOR {name} ON SCHEMA public IS NULL; ROLLBACK");
        if let Err(error) = target.batch_execute(&sql).await {
            target.batch_execute("ROLLBACK").await.map_err(Error::query("ask for a provider of security labels"))?;
            if error.code().is_some_and(|code| code.code() == PROVIDER_NOT_LOADED) {
                missing.push(provider);
            }
        }
    }
    Ok(missing)
}

impl TargetLacks {
    /// Takes out of a dump what the target cannot give, and says so.
    pub(super) fn adapt(&self, dump: &mut Dump) {
        // What the first entry needs is set before its header, and so stands in the preamble.
        for setting in &mut dump.preamble {
            self.adapt_tablespace(setting);
        }
        for entry in &mut dump.entries {
            for setting in &mut entry.settings {
                self.adapt_tablespace(setting);
            }
            if self.lz4 {
                leave_out(entry, &["set", "compression", "lz4"]);
            }
            for provider in &self.label_providers {
                entry.leave_out_labels_of(provider);
            }
        }
        dump.entries.retain(|entry| !entry.statements.is_empty());
    }

    fn adapt_tablespace(&self, setting: &mut Setting) {
        let value = setting.statement.strip_prefix("SET default_tablespace = ");
        let named = |name: &String| value.is_some_and(|value| value == name || value == quote_identifier(name));
        if self.tablespaces.iter().any(named) {
            "SET default_tablespace = ''".clone_into(&mut setting.statement);
        }
    }

    pub(super) fn tell(&self) {
        if !self.tablespaces.is_empty() {
            let missing = self.tablespaces.join(", ");
            warn!(missing, "tablespaces that the target lacks: what is in them goes into the default one");
        }
        if !self.label_providers.is_empty() {
            let missing = self.label_providers.join(", ");
            warn!(missing, "security labels left out: the target has not loaded their provider");
        }
    }
}

fn leave_out(entry: &mut Entry, words: &[&str]) {
    let before = entry.statements.len();
    let title = entry.title();
    entry.retain_statements(|statement| !statement.says(words));
    if entry.statements.len() < before {
        warn!(of = title, "compression with LZ4 left out: the target does not have it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "SET default_tablespace = \"gone there\";\n-- Name: t; Type: TABLE; Schema: s; Owner: o\n\nCREATE TABLE s.t (v text);\n\
        ALTER TABLE ONLY s.t ALTER COLUMN v SET COMPRESSION lz4;\nALTER TABLE s.t OWNER TO o;\n\
        SET default_tablespace = \"gone there\";\n-- Name: u; Type: TABLE; Schema: s; Owner: o\n\nCREATE TABLE s.u ();\n\
        SET default_tablespace = fast;\n-- Name: w; Type: TABLE; Schema: s; Owner: o\n\nCREATE TABLE s.w ();\n\
        -- Name: TABLE t; Type: SECURITY LABEL; Schema: s; Owner: o\n\nSECURITY LABEL FOR p ON TABLE s.t IS 'for q on';\n\
        SECURITY LABEL FOR q ON COLUMN s.t.v IS 'x';\n\
        -- Name: TABLE u; Type: SECURITY LABEL; Schema: s; Owner: o\n\nSECURITY LABEL FOR q ON TABLE s.u IS 'x';\n";

    #[test]
    fn only_what_the_target_lacks_is_taken_out() {
        let mut dump = Dump::parse(DUMP).unwrap();
        let lacks = TargetLacks {
            tablespaces: vec!["gone there".to_owned()],
            lz4: true,
            label_providers: vec!["q".to_owned()],
        };
        lacks.adapt(&mut dump);
        let statements: Vec<&[String]> = dump.entries.iter().map(|entry| entry.statements.as_slice()).collect();
        assert_eq!(statements[0], ["CREATE TABLE s.t (v text)", "ALTER TABLE s.t OWNER TO o"]);
        assert_eq!(statements[3], ["SECURITY LABEL FOR p ON TABLE s.t IS 'for q on'"]);
        assert_eq!(statements.len(), 4);
        assert_eq!(dump.preamble[0].statement, "SET default_tablespace = ''");
        let setting = |index: usize| dump.entries[index].settings[0].statement.as_str();
        assert_eq!((setting(1), setting(2)), ("SET default_tablespace = ''", "SET default_tablespace = fast"));

        let mut whole = Dump::parse(DUMP).unwrap();
        TargetLacks::default().adapt(&mut whole);
        assert_eq!(whole, Dump::parse(DUMP).unwrap());
    }
}
