//! What a comparison finds.

use std::fmt;

use crate::model::TableName;

/// One thing in which the target's table differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub table: TableName,
    pub column: Option<String>,
    pub kind: DifferenceKind,
    /// What to type on the target.
    pub remedy: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DifferenceKind {
    /// Not on the target. A partition's rows then go through its root, so only tables without a root count.
    MissingTable,
    MissingColumn,
    Type {
        source: String,
        target: String,
    },
    /// Values that the source's enumeration has and the target's has not.
    MissingLabels {
        labels: Vec<String>,
    },
    /// The target computes what the source stores.
    Generated,
    /// The target stores what the source computes, and nobody sends it.
    NotGenerated,
    /// Both compute, and not by the same words.
    Expression {
        source: String,
        target: String,
    },
    Collation {
        source: Option<String>,
        target: Option<String>,
    },
    /// NULLs that the source allows would be refused.
    NotNull,
    /// NULLs that the source refuses would be taken.
    Nullable,
    /// The source numbers it and nothing does on the target.
    MissingIdentity,
    /// Numbered in another way.
    Identity {
        source: &'static str,
        target: &'static str,
    },
    /// An INSERT that leaves it out is taken by the source and refused by the target.
    MissingDefault {
        source: String,
    },
    Default {
        source: Option<String>,
        target: Option<String>,
    },
    /// The source does not have it and nothing fills it in.
    ExtraColumnNotNull,
    /// The source does not have it; it stays NULL, or what its default says.
    ExtraColumn,
    /// The target has no unique key over the columns that tell a row: updates would scan the whole table, and find
    /// more than one row.
    MissingKey {
        columns: Vec<String>,
    },
    /// A unique key of the target that the source does not have: rows may be refused.
    ExtraUniqueKey {
        name: String,
    },
    /// Checked at once on the target and at commit on the source: what is unique at commit may not be in between.
    KeyNotDeferrable {
        name: String,
    },
    MissingUniqueKey {
        name: String,
    },
    /// A check, an exclusion or a foreign key.
    MissingConstraint {
        what: &'static str,
        name: String,
        definition: String,
    },
    /// Rows that the source takes may be refused.
    ExtraConstraint {
        what: &'static str,
        name: String,
        definition: String,
    },
    MissingIndex {
        name: String,
    },
    /// Its value is set at the cutover.
    MissingSequence {
        sequence: TableName,
    },
    /// Fires for each row that is copied and applied.
    FiringTrigger {
        name: String,
    },
    /// Only one of both is partitioned.
    Partitioning,
}

impl Difference {
    /// Whether rows would be refused or lost, or the cutover fail; everything else is for somebody to know.
    pub fn breaks(&self) -> bool {
        match self.kind {
            DifferenceKind::MissingTable
            | DifferenceKind::MissingColumn
            | DifferenceKind::Type { .. }
            | DifferenceKind::MissingLabels { .. }
            | DifferenceKind::Generated
            | DifferenceKind::NotGenerated
            | DifferenceKind::NotNull
            | DifferenceKind::MissingIdentity
            | DifferenceKind::MissingDefault { .. }
            | DifferenceKind::ExtraColumnNotNull
            | DifferenceKind::MissingKey { .. }
            | DifferenceKind::MissingSequence { .. } => true,
            DifferenceKind::Expression { .. }
            | DifferenceKind::Collation { .. }
            | DifferenceKind::Nullable
            | DifferenceKind::Identity { .. }
            | DifferenceKind::Default { .. }
            | DifferenceKind::ExtraColumn
            | DifferenceKind::ExtraUniqueKey { .. }
            | DifferenceKind::KeyNotDeferrable { .. }
            | DifferenceKind::MissingUniqueKey { .. }
            | DifferenceKind::MissingConstraint { .. }
            | DifferenceKind::ExtraConstraint { .. }
            | DifferenceKind::MissingIndex { .. }
            | DifferenceKind::FiringTrigger { .. }
            | DifferenceKind::Partitioning => false,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.column {
            // A sequence that belongs to no column stands for itself.
            None if matches!(self.kind, DifferenceKind::MissingSequence { .. }) => write!(f, "{}", self.kind),
            Some(column) => write!(f, "column {column} of table {}: {}", self.table, self.kind),
            None => write!(f, "table {}: {}", self.table, self.kind),
        }
    }
}

impl fmt::Display for DifferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = |default: &Option<String>| default.clone().unwrap_or_else(|| "none".to_owned());
        let collation = |collation: &Option<String>| collation.clone().unwrap_or_else(|| "the default".to_owned());
        match self {
            Self::MissingTable | Self::MissingColumn => f.write_str("it is not on the target"),
            Self::Type { source, target } => write!(f, "it is {source} on the source and {target} on the target"),
            Self::MissingLabels { labels } => {
                write!(f, "its type lacks labels on the target: {}", labels.join(", "))
            }
            Self::Generated => f.write_str("the target computes it and the source stores it"),
            Self::NotGenerated => f.write_str("the source computes it and the target does not, so it would stay empty"),
            Self::Expression { source, target } => {
                write!(f, "it is {source} on the source and {target} on the target")
            }
            Self::Collation { source, target } => {
                let (source, target) = (collation(source), collation(target));
                write!(f, "it collates by {source} on the source and {target} on the target")
            }
            Self::NotNull => f.write_str("the target refuses NULL and the source allows it"),
            Self::Nullable => f.write_str("the target allows NULL and the source refuses it"),
            Self::MissingIdentity => f.write_str("the source numbers it (identity) and the target does not"),
            Self::Identity { source, target } => {
                write!(f, "it is numbered {source} on the source and {target} on the target")
            }
            Self::MissingDefault { source } => {
                write!(f, "the target has no default and refuses NULL; the source's default is {source}")
            }
            Self::Default { source, target } => {
                write!(f, "its default is {} on the source and {} on the target", default(source), default(target))
            }
            Self::ExtraColumnNotNull => f.write_str("only the target has it, NOT NULL and without a default"),
            Self::ExtraColumn => f.write_str("only the target has it; no row brings a value for it"),
            Self::MissingKey { columns } => {
                write!(f, "the target has no unique key over ({}), which tells its rows", columns.join(", "))
            }
            Self::ExtraUniqueKey { name } => write!(f, "only the target has the unique key {name}"),
            Self::KeyNotDeferrable { name } => {
                write!(f, "the unique key {name} is deferrable on the source and not on the target")
            }
            Self::MissingUniqueKey { name } => write!(f, "the target lacks the unique key {name}"),
            Self::MissingConstraint { what, name, definition } => {
                write!(f, "the target lacks the {what} {name}: {definition}")
            }
            Self::ExtraConstraint { what, name, definition } => {
                write!(f, "only the target has the {what} {name}: {definition}")
            }
            Self::MissingIndex { name } => write!(f, "the target lacks the index {name}"),
            Self::MissingSequence { sequence } => {
                write!(f, "the sequence {sequence} is not on the target, and the cutover has to set it")
            }
            Self::FiringTrigger { name } => {
                write!(f, "the trigger {name} of the target fires for every row that is copied and applied")
            }
            Self::Partitioning => f.write_str("it is partitioned on one side only"),
        }
    }
}
