"""Objectives, filters, feature sizes and the report page behind the public modules. Private."""
