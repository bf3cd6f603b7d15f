"""The gateway: takes jobs from clients, and brings them to orchestrators."""
