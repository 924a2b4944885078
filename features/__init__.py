"""The patient: FHIR in, dated events, features out."""
