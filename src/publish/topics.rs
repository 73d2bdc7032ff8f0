//! Topic names: legal, one a table, and known before anything is published.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::TableName;

use super::{Error, Options};

/// Longest name Kafka accepts (`org.apache.kafka.common.internals.Topic`).
const LENGTH_MAX: usize = 249;

/// The migration's topics. Names with characters that Kafka does not allow get `_` in their place, as Debezium does.
#[derive(Clone, Debug)]
pub struct Topics {
    prefix: String,
    tables: BTreeMap<TableName, Arc<str>>,
    /// Who has which name, folded as Kafka folds it for its metrics: it refuses `a.b` beside `a_b`.
    taken: BTreeMap<String, String>,
    transaction: Arc<str>,
    position: Arc<str>,
    message: Option<Arc<str>>,
}

impl Topics {
    /// Names every topic, and refuses names that two tables would share.
    pub fn new(options: &Options) -> Result<Self, Error> {
        let prefix = options.topic_prefix.clone();
        let mut topics = Self {
            transaction: format!("{prefix}.transaction").into(),
            position: format!("{prefix}.changeover.position").into(),
            message: options.logical_messages.then(|| format!("{prefix}.message").into()),
            tables: BTreeMap::new(),
            taken: BTreeMap::new(),
            prefix,
        };
        if sanitised(&topics.prefix) != topics.prefix || topics.prefix.is_empty() {
            return Err(Error::TopicName { topic: topics.prefix });
        }
        let own = [Some(&topics.transaction), Some(&topics.position), topics.message.as_ref()];
        for topic in own.into_iter().flatten().cloned().collect::<Vec<_>>() {
            topics.take(&topic, format!("changeover's own {topic}"))?;
        }
        for table in &options.tables {
            topics.of_table(table)?;
        }
        Ok(topics)
    }

    /// The topic of `table`; named now if it is new.
    pub(super) fn of_table(&mut self, table: &TableName) -> Result<Arc<str>, Error> {
        if let Some(topic) = self.tables.get(table) {
            return Ok(Arc::clone(topic));
        }
        let topic: Arc<str> = format!("{}.{}.{}", self.prefix, sanitised(&table.schema), sanitised(&table.name)).into();
        self.take(&topic, table.to_string())?;
        self.tables.insert(table.clone(), Arc::clone(&topic));
        Ok(topic)
    }

    pub(super) fn knows(&self, table: &TableName) -> bool {
        self.tables.contains_key(table)
    }

    /// `<prefix>.transaction`: BEGIN and END.
    pub fn transaction(&self) -> &Arc<str> {
        &self.transaction
    }

    /// `<prefix>.changeover.position`: compacted, one key a migration.
    pub fn position(&self) -> &Arc<str> {
        &self.position
    }

    /// `<prefix>.message`, when logical messages are published.
    pub fn message(&self) -> Option<&Arc<str>> {
        self.message.as_ref()
    }

    /// Where consumers read changes: every table's topic and the others of the stream, the position aside.
    pub fn of_stream(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tables.values().chain([&self.transaction]).chain(self.message.as_ref())
    }

    fn take(&mut self, topic: &str, owner: String) -> Result<(), Error> {
        if topic.len() > LENGTH_MAX {
            return Err(Error::TopicName { topic: topic.to_owned() });
        }
        match self.taken.insert(topic.replace('.', "_"), owner.clone()) {
            Some(one) => Err(Error::TopicCollision { one, other: owner, topic: topic.to_owned() }),
            None => Ok(()),
        }
    }
}

fn sanitised(name: &str) -> String {
    let legal = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    name.chars().map(|character| if legal(character) { character } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::options;
    use super::*;

    fn topics(prefix: &str, tables: &[(&str, &str)]) -> Result<Topics, Error> {
        let mut options = options();
        options.topic_prefix = prefix.to_owned();
        options.tables = tables.iter().map(|(schema, name)| TableName::new(*schema, *name)).collect();
        Topics::new(&options)
    }

    #[test]
    fn illegal_characters_become_underscores() {
        let mut topics = topics("shop", &[("public", "Straße 1")]).unwrap();
        assert_eq!(&*topics.of_table(&TableName::new("public", "Straße 1")).unwrap(), "shop.public.Stra_e_1");
    }

    #[test]
    fn two_tables_never_share_a_topic() {
        for tables in [
            [("public", "a b"), ("public", "a_b")],
            [("a.b", "c"), ("a", "b.c")],
            [("a_b", "c"), ("a", "b_c")], // Kafka refuses to have both, they differ in '.' and '_' only
        ] {
            assert!(matches!(topics("shop", &tables), Err(Error::TopicCollision { .. })), "{tables:?}");
        }
        assert!(matches!(topics("shop", &[("changeover", "position")]), Err(Error::TopicCollision { .. })));
    }

    #[test]
    fn a_table_that_comes_later_is_held_to_the_same() {
        let mut topics = topics("shop", &[("public", "a_b")]).unwrap();
        assert!(topics.of_table(&TableName::new("public", "a_b")).is_ok());
        assert!(topics.of_table(&TableName::new("public", "a b")).is_err());
    }

    #[test]
    fn an_illegal_or_overlong_name_is_refused() {
        for prefix in ["", "größe", &"x".repeat(250)] {
            assert!(matches!(topics(prefix, &[]), Err(Error::TopicName { .. })), "{prefix}");
        }
    }
}
