module example.com/echo-agent

go 1.25
