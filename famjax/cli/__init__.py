"""The command line, one file per verb. Only this folder imports gin."""
