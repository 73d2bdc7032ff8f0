//! Roles as SQL. Pure.

use crate::model::{Secret, quote_identifier, quote_literal};

/// A row of `pg_roles`.
#[derive(Clone, Debug)]
pub(super) struct Role {
    pub(super) name: String,
    pub(super) superuser: bool,
    pub(super) inherits: bool,
    pub(super) creates_roles: bool,
    pub(super) creates_databases: bool,
    pub(super) can_login: bool,
    pub(super) replication: bool,
    pub(super) bypasses_row_security: bool,
    pub(super) connection_limit: i32,
    pub(super) valid_until: Option<String>,
    pub(super) comment: Option<String>,
}

impl Role {
    /// Has an attribute that only a superuser may give.
    pub(super) const fn takes_a_superuser(&self) -> bool {
        self.superuser || self.replication || self.bypasses_row_security
    }
}

/// A row of `pg_auth_members`, over all grantors.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    pub(super) role: String,
    pub(super) member: String,
    pub(super) admin: bool,
    /// PostgreSQL 16 and later.
    pub(super) inherit: bool,
    pub(super) set: bool,
}

/// `CREATE ROLE` and what belongs to it. What only a superuser may grant is left out for others.
pub(super) fn create_role(role: &Role, password: Option<&Secret>, as_superuser: bool) -> Vec<String> {
    let flags = [
        ("LOGIN", role.can_login),
        ("NOINHERIT", !role.inherits),
        ("CREATEROLE", role.creates_roles),
        ("CREATEDB", role.creates_databases),
        ("SUPERUSER", role.superuser && as_superuser),
        ("REPLICATION", role.replication && as_superuser),
        ("BYPASSRLS", role.bypasses_row_security && as_superuser),
    ];
    let mut sql = format!("CREATE ROLE {}", quote_identifier(&role.name));
    for (flag, _) in flags.iter().filter(|(_, set)| *set) {
        sql.push(' ');
        sql.push_str(flag);
    }
    if role.connection_limit >= 0 {
        sql.push_str(&format!(" CONNECTION LIMIT {}", role.connection_limit));
    }
    if let Some(until) = &role.valid_until {
        sql.push_str(&format!(" VALID UNTIL {}", quote_literal(until)));
    }
    if let Some(hash) = password {
        // A hash that is given as the password is stored as it is ("CREATE ROLE" in the documentation).
        sql.push_str(&format!(" PASSWORD {}", quote_literal(hash.reveal())));
    }
    let comment = role.comment.as_ref();
    let comment =
        comment.map(|text| format!("COMMENT ON ROLE {} IS {}", quote_identifier(&role.name), quote_literal(text)));
    std::iter::once(sql).chain(comment).collect()
}

/// `version` is the older of both servers: before 16 there is only `WITH ADMIN OPTION`.
pub(super) fn grant_membership(membership: &Membership, version: u32) -> String {
    let (role, member) = (quote_identifier(&membership.role), quote_identifier(&membership.member));
    let options = match (version >= 160_000, membership.admin) {
        (true, admin) => format!(" WITH ADMIN {admin}, INHERIT {}, SET {}", membership.inherit, membership.set),
        (false, true) => " WITH ADMIN OPTION".to_owned(),
        (false, false) => String::new(),
    };
    format!("GRANT {role} TO {member}{options}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role() -> Role {
        Role {
            name: "o'brien \"x\"".to_owned(),
            superuser: true,
            inherits: false,
            creates_roles: false,
            creates_databases: true,
            can_login: true,
            replication: false,
            bypasses_row_security: false,
            connection_limit: 5,
            valid_until: Some("2030-01-01 00:00:00+00".to_owned()),
            comment: Some("it's".to_owned()),
        }
    }

    #[test]
    fn a_role_is_made_as_it_was_as_far_as_we_may() {
        let statements = create_role(&role(), Some(&Secret::new("SCRAM-SHA-256$x")), true);
        assert_eq!(
            statements,
            [
                r#"CREATE ROLE "o'brien ""x""" LOGIN NOINHERIT CREATEDB SUPERUSER CONNECTION LIMIT 5 VALID UNTIL '2030-01-01 00:00:00+00' PASSWORD 'SCRAM-SHA-256$x'"#,
                r#"COMMENT ON ROLE "o'brien ""x""" IS 'it''s'"#,
            ]
        );
        assert!(!create_role(&role(), None, false)[0].contains("SUPERUSER"));
    }

    #[test]
    fn memberships_are_written_as_the_older_server_takes_them() {
        let membership =
            Membership { role: "a".to_owned(), member: "b".to_owned(), admin: true, inherit: false, set: true };
        assert_eq!(grant_membership(&membership, 150_000), r#"GRANT "a" TO "b" WITH ADMIN OPTION"#);
        assert_eq!(
            grant_membership(&membership, 160_000),
            r#"GRANT "a" TO "b" WITH ADMIN true, INHERIT false, SET true"#
        );
    }
}
